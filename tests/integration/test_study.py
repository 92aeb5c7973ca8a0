"""scripts/study.py through the command line, on three colours."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_train import SMALL, python

from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.evaluation import compare

SCRIPT = CONF.parent / "scripts/study.py"
IN_FORKS = Path(__file__).parents[1] / "study_in_forks.py"
spec = importlib.util.spec_from_file_location("study", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
CONTENT = {
    "title": "three colours",
    "common": [*SMALL, "dataset=csv", "select_on=last", "callbacks.dashboard=null"],
    "seeds": [0, 1],
    "images": 64,
    "epochs": 2,
    "batch": 8,
    "variants": {"base": ["ablation=base"], "qcs + SAM": ["ablation=none", "sam.rho=0.05"]},
    "time": "base",
}


def study(folder: Path, *options: str, by=SCRIPT, **changes) -> subprocess.CompletedProcess:
    (folder / "study.yaml").write_text(yaml.safe_dump(CONTENT | changes))
    return python(str(by), "study.yaml", *options, cwd=folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory, faces_table) -> tuple[Path, list[str]]:
    """A study of one seed that goes on with a second one."""
    folder, data = tmp_path_factory.mktemp("study"), f"dataset.path={faces_table}"
    first = study(folder, data, seeds=[0], time=None, by=IN_FORKS)
    assert first.returncode == 0, first.stderr
    # What is finished needs its folder no more.
    for run in (folder / "runs/study").glob("*-0"):
        run.rename(folder / run.name)
    second = study(folder, data, "--jobs", "2", time=None, by=IN_FORKS)
    assert second.returncode == 0, second.stderr
    return folder, [first.stderr, second.stderr]


def test_a_study_goes_on_and_is_summed_up(done):
    folder, logs = done
    assert "2 runs to do" in logs[0] and "2 runs to do" in logs[1]
    kept = json.loads((folder / "runs/study/report/study.json").read_text())
    assert {(r["variant"], r["images"], r["seed"]) for r in kept["runs"].values()} == {
        (name, 64, seed) for name in ("base", "qcs + SAM") for seed in (0, 1)
    }
    for run in kept["runs"].values():
        hits = sum(bin(byte).count("1") for byte in bytes.fromhex(run["correct"]))
        assert hits / run["test_images"] == pytest.approx(run["acc"], abs=1e-5)
    # As many images as it was told, in groups of four.
    config = yaml.safe_load((folder / "qcs_sam-64-0/job/config.yaml").read_text())
    assert config["loader"]["samples_per_epoch"] * config["model"]["roles"] * 2 == 64
    assert config["loader"]["batch_size"] == 2 and config["sam"]["rho"] == 0.05


def test_the_report_tells_all_of_it(done):
    report = done[0] / "runs/study/report"
    page = (report / "report.md").read_text()
    assert "python" in page and "## Matched for images" in page and "for time" not in page
    rows = [line for line in page.splitlines() if line.startswith("| qcs + SAM |")]
    assert len(rows) == 4 and "`sam.rho=0.05`" in rows[0]
    assert rows[1].startswith("| qcs + SAM | 64 | 16 | 8 |")  # images, groups, steps
    assert "±" in rows[2] and rows[3].count(",") == 1  # mean and spread; each seed's difference
    result = json.loads((report / "images/compare.json").read_text())
    assert [len(group["acc"]["values"]) for group in result["groups"]] == [2, 2]
    assert result["groups"][1]["against"]["p"] <= 1
    assert (report / "images/seeds.png").stat().st_size > 5000


def test_runs_of_equal_time_see_fewer_images_and_are_shared(tmp_path):
    """The reference's runs are in both tables; what takes thrice as long sees a third."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONTENT | {"images": 96}))
    made = script.Study(tmp_path / "study.yaml", [], tmp_path / "runs", tmp_path / "report")
    made.kept["seconds_per_image"] = {"base": 0.01, "qcs + SAM": 0.03}
    tables = made.tables()
    assert tables["time"]["base"] == tables["images"]["base"]
    assert [run.images for run in tables["time"]["qcs + SAM"]] == [32, 32]
    runs = made.todo()
    # Two seeds of both variants, then what the second table adds.
    assert [run.seed for run in runs] == [0, 0, 1, 1, 0, 1] and len(set(runs)) == 6


def test_variants_may_be_added_but_not_changed(tmp_path):
    def made(**variants) -> script.Study:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONTENT | {"variants": variants}))
        return script.Study(tmp_path / "study.yaml", [], tmp_path / "runs", tmp_path / "report")

    made(base=["ablation=base"]).save()
    made(base=["ablation=base"], dcs=["ablation=dcs"]).save()
    made(base=["ablation=base"]).save()
    assert set(json.loads((tmp_path / "report/study.json").read_text())["study"]["variants"]) == {
        "base",
        "dcs",
    }
    with pytest.raises(UserError, match="is of other settings"):
        made(base=["ablation=base"], dcs=["ablation=dcs", "sam.rho=0.05"])
    with pytest.raises(UserError, match="the same letters and digits"):
        made(base=["ablation=base"], **{"qcs, 2": ["ablation=none"], "QCS/2": ["ablation=none"]})


def test_overrides_of_the_command_line_may_not_change(tmp_path):
    """Or runs that are finished would be compared with others that had, say, no weights."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONTENT))

    def made(*extra: str) -> script.Study:
        where = tmp_path / "runs", tmp_path / "report"
        return script.Study(tmp_path / "study.yaml", list(extra), *where)

    made("dataset.path=a.csv", "backbone.weights=here/faces.pt").save()
    made("dataset.path=b.csv", "backbone.weights=there/faces.pt")
    for extra in ([], ["backbone.weights=other.pt"], ["backbone.weights=faces.pt", "sam.rho=0.1"]):
        with pytest.raises(UserError, match="and this command line: choose another --report"):
            made(*extra)


@pytest.mark.parametrize("file", sorted(SCRIPT.parent.glob("study_*.yaml")), ids=lambda f: f.stem)
def test_every_study_composes(file, tmp_path):
    made = script.Study(file, ["dataset.path=x"], tmp_path / "runs", tmp_path / "report")
    for name, config in made.configs.items():
        assert made.roles(name) == {"base": 1, "DCS": 2}.get(name.split()[0], 4)
        assert (config["sam"]["rho"] > 0) == ("SAM" in name)
        if ", " in name:  # of speed
            assert {"fp32": "32-true", "bf16": "bf16-mixed"}[name.split()[1]] == (
                config["trainer"]["precision"]
            )


def test_what_is_wrong_is_one_sentence(done, tmp_path, faces_table):
    data = f"dataset.path={faces_table}"
    wrong = study(tmp_path, data, time="other")
    assert wrong.returncode == 1 and "other is none of its variants" in wrong.stderr
    wrong = study(tmp_path, data, epoch=3)
    assert "epoch: a study has" in wrong.stderr
    wrong = study(tmp_path, "dataset.path=nowhere.csv")
    assert wrong.returncode == 1 and "nowhere.csv" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    wrong = study(done[0], data, images=32)
    assert "is of other settings" in wrong.stderr and "Traceback" not in wrong.stderr


def test_without_time_nothing_is_started(tmp_path, faces_table):
    none = study(tmp_path, f"dataset.path={faces_table}", "--minutes", "0")
    assert none.returncode == 0 and "6 runs to do" in none.stderr
    assert not list((tmp_path / "runs/study").glob("*/output.log"))


def test_a_run_that_fails_is_named(tmp_path, faces_table):
    alone = {"time": None, "seeds": [0], "variants": {"base": ["ablation=base"]}}
    failed = study(tmp_path, f"dataset.path={faces_table}", images=8000, **alone)
    assert failed.returncode == 1 and "error: failed: base-8000-0" in failed.stderr
    assert "must be from 1 to" in (tmp_path / "runs/study/base-8000-0/output.log").read_text()


SEVERAL = {k: CONTENT[k] for k in ("title", "batch", "variants")} | {
    "common": [*SMALL, "dataset=csv", "callbacks.best=null", "callbacks.dashboard=null"],
    "choose": {"key": "optimizer.lr", "values": [1e-3, 1e-2], "seeds": [0]},
    "tables": {"few": {"train_images": 12, "images": 24, "seeds": [0], "variants": ["base"]}},
}


def test_validation_chooses_a_setting_and_the_test_is_seen_once(tmp_path, faces_table):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SEVERAL))
    ran = python(str(IN_FORKS), "study.yaml", f"dataset.path={faces_table}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    runs = tmp_path / "runs/study"
    kept = json.loads((runs / "report/study.json").read_text())
    tried = {run["value"]: run["val_acc"] for run in kept["tried"].values()}
    best = max(tried, key=tried.__getitem__)
    assert list(tried) == [1e-3, 1e-2] and list(kept["runs"]) == [f"base-24-0-of12-{best}"]
    assert [path.parts[-3] for path in runs.glob("*/job/test")] == list(kept["runs"])
    # The chosen trial was not trained again.
    log = (runs / f"base-24-0-of12-{best}" / "output.log").read_text()
    assert "nothing is left to train" in log


def test_the_report_of_several_numbers_of_images(tmp_path):
    """Made of study.json alone; a variant whose setting is not chosen yet is not in it."""
    common = {"images": 60, "seeds": [0, 1, 2], "variants": ["base", "qcs + SAM"]}
    sizes = {"few": 10, "more": 30, "all": 50}
    tables = {name: common | {"train_images": number} for name, number in sizes.items()}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SEVERAL | {"tables": tables}))
    made = script.Study(tmp_path / "study.yaml", [], tmp_path / "runs", tmp_path / "report")
    assert [run.value for run in made.todo()] == [1e-3, 1e-3, 1e-2, 1e-2] * 3
    right = np.random.default_rng(0).random((2, 2, 3, 80)) < 0.7
    for number, table in enumerate(("few", "more")):
        for run in made.trials(table):
            made.kept["tried"][run.name] = {"val_acc": 0.5 + run.value}
        for row, runs in zip(right[number], made.tables()[table].values(), strict=True):
            for hits, run in zip(row, runs, strict=True):
                made.kept["runs"][run.name] = {
                    "variant": run.variant, "images": run.images, "seed": run.seed,
                    **dict.fromkeys(script.SCORES, 0.5), "acc": hits.mean(),
                    "intervals": {"acc": [0.4, 0.6]}, "correct": np.packbits(hits).tobytes().hex(),
                    "test_images": 80,
                }  # fmt: skip
    script.write_report(made, "python")
    page = (tmp_path / "report/report.md").read_text()
    assert "## 10 training images, 60 seen (few)" in page and "(all)" not in page
    # Six epochs of ten images, in batches of eight.
    assert "| base | 60 | 60 | 12 |  | 0.001: 50.10, **0.01: 51.00** |" in page
    gap = compare.over_seeds(*torch.from_numpy(right[0]))
    low, high = (f"{100 * edge:+.2f}" for edge in gap["interval"])
    assert f"| qcs + SAM | {100 * gap['difference']:+.2f} | {low} to {high} |" in page
    assert (tmp_path / "report/curve-60.png").stat().st_size > 5000


def test_a_study_that_is_stopped_stops_its_runs(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONTENT | {"time": None}))
    started = []

    def start(*_) -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    monkeypatch.setattr(script, "start", start)
    monkeypatch.setattr(script, "measure", lambda study: None)
    monkeypatch.setattr(script.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    options = ["study.yaml", "--jobs", "2", "--runs", "runs"]
    monkeypatch.setattr(sys, "argv", ["study.py", *options])
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            script.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [run.poll() for run in started] == [-signal.SIGTERM] * 2
