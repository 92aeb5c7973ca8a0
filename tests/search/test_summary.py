"""What a multirun leaves behind, whatever its jobs do."""

import csv
import json

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from qcs.config.errors import Failed, UserError
from qcs.search.summary import Summary


def config(folder, job: int = 0, sweeper: str = "basic", overrides=()):
    runtime = {"output_dir": str(folder / str(job)), "choices": {"hydra/sweeper": sweeper}}
    hydra = {"mode": RunMode.MULTIRUN, "runtime": runtime, "sweep": {"dir": str(folder)}}
    hydra |= {"job": {"num": job}, "overrides": {"hydra": [], "task": list(overrides)}}
    (folder / str(job)).mkdir(exist_ok=True)
    return OmegaConf.create({"hydra": hydra, "optimized_metric": "val/acc"})


def job(value, *overrides: str) -> JobReturn:
    if failed := isinstance(value, Exception):
        try:
            raise value
        except Exception as error:
            value = error
    done = JobReturn(overrides=list(overrides), status=JobStatus(int(failed) + 1))
    done.return_value = value
    return done


def test_a_job_that_left_no_folder_has_a_result(tmp_path):
    cfg = config(tmp_path)
    (tmp_path / "0").rmdir()  # as a run that is refused does
    Summary().on_job_end(cfg, job_return=job(UserError("no such file")))
    assert (tmp_path / "0/result.json").is_file()


def rows(folder) -> list[list[str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_any_exception_is_a_failed_job_and_the_table_is_there_after_each(tmp_path, caplog, capsys):
    summary = Summary()
    results = [0.5, RuntimeError("CUDA out of memory"), UserError("no such file"), 0.25]
    for number, result in enumerate(results):
        ended = job(result, f"seed={number}", "~callbacks.dashboard", "+x='a=b'")
        summary.on_job_end(config(tmp_path, number), job_return=ended)
        assert len(rows(tmp_path)) == number + 2
        assert isinstance(ended.return_value, Failed) == isinstance(result, Exception)
    assert [row[-1] for row in rows(tmp_path)[1:]] == ["done", "failed", "failed", "done"]
    assert rows(tmp_path)[0] == ["job", "folder", "seed", "val/acc", "state"]
    assert "CUDA out of memory" in caplog.text and "Traceback" in caplog.text
    assert caplog.text.count("Traceback") == 1  # the user's mistake is a sentence
    with pytest.raises(SystemExit) as ended:
        summary.on_multirun_end(config(tmp_path))
    assert ended.value.code == 1
    assert "failed" in capsys.readouterr().out
    summary.on_multirun_end(config(tmp_path, sweeper="qcs_optuna"))  # goes on without them


def test_a_mistake_keeps_its_traceback_where_it_is_asked_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("QCS_TRACEBACK", "1")
    Summary().on_job_end(config(tmp_path), job_return=job(UserError("no such file")))
    assert "Traceback" in caplog.text


def test_a_multirun_forgets_an_earlier_one_in_its_folder(tmp_path):
    config(tmp_path, 3)
    (tmp_path / "3/result.json").write_text(json.dumps({"overrides": [], "state": "done"}))
    Summary().on_multirun_start(config(tmp_path, sweeper="qcs_optuna"))
    assert (tmp_path / "3/result.json").exists()
    Summary().on_multirun_start(config(tmp_path))
    assert not (tmp_path / "3/result.json").exists()


def test_odd_names_are_shown_as_they_are(tmp_path, capsys):
    ended = job(0.5, "dataset.path=[/red]", "a=1"), job(0.5, "dataset.path=b", "a=1")
    for number, one in enumerate(ended):
        Summary().on_job_end(config(tmp_path, number), job_return=one)
    Summary().on_multirun_end(config(tmp_path))
    assert "[/red]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides,excluded",
    [
        (["test=false", "seed=0,1", "~callbacks.last"], "['trial','test','callbacks.last']"),
        (["test=false", "seed=0"], "['trial']"),  # one job, which all its overrides name
        (["test=false", "seed=0,0"], "['trial','test','seed']"),  # numbers name the folders
        (["model=glob(*)", "seed=range(1,3)"], "['trial']"),
    ],
)
def test_a_folder_is_named_by_what_differs_between_jobs(tmp_path, overrides, excluded):
    started = config(tmp_path, overrides=overrides)
    Summary().on_multirun_start(started)
    (found,) = started.hydra.overrides.hydra
    assert found == f"hydra.job.config.override_dirname.exclude_keys={excluded}"


def test_the_test_set_has_columns_and_each_metric_its_own(tmp_path):
    (tmp_path / "0/test").mkdir(parents=True)
    report = {"acc": 0.5, "mean_acc": 0.25, "f1": 0.125, "n": 8}
    (tmp_path / "0/test/metrics.json").write_text(json.dumps(report))
    of_job = config(tmp_path)
    of_job.test, of_job.optimized_metric = True, ["val/acc", "val/f1"]
    Summary().on_job_end(of_job, job_return=job([0.75, 1.0], "seed=0"))
    Summary().on_job_end(config(tmp_path, 1), job_return=job(0.5, "seed=1"))
    names = ["val/acc", "val/f1", "test/acc", "test/mean_acc", "test/f1"]
    assert rows(tmp_path) == [
        ["job", "folder", "seed", *names, "state"],
        ["0", "0", "0", "0.75", "1.0", "0.5", "0.25", "0.125", "done"],
        ["1", "1", "1", "0.5", "", "", "", "", "done"],
    ]
