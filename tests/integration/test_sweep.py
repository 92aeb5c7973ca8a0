"""Searches and multiruns through the command line, on tiny drawn faces."""

import csv
import json
from pathlib import Path

import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from optuna.trial import TrialState
from test_train import SMALL, qcs

from qcs.config import threads
from qcs.config.keys import CONF
from qcs.config.options import resolve
from qcs.data.sources import synthetic
from qcs.search.study import open_storage
from qcs.train import Settings

FEW = [*SMALL, "callbacks.dashboard.every_n_epochs=0", "test=false"]
SEARCH = ["-m", "hparams_search=optuna", *FEW, "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sweep") / "faces"
    synthetic.make(folder, size=32, train=4, val=2, test=2, workers=1)
    return f"dataset.path={folder}"


def study(folder: Path) -> optuna.Study:
    storage = open_storage(folder / "runs/search.journal")
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def table(folder: Path) -> list[dict]:
    with (folder / "sweep/summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_is_summed_up_and_goes_on(data, tmp_path):
    options = [*SEARCH, data, "trainer.max_epochs=1", "sam.rho=0.0,0.05"]
    options += ["optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    qcs("train", *options, "hydra.sweeper.n_trials=2", cwd=tmp_path)
    first = study(tmp_path).trials
    assert [t.state.name for t in first] == ["COMPLETE"] * 2
    assert set(first[0].params) == {
        "optimizer.lr", "loss.label_smoothing", "model.cross.drop", "sam.rho"
    }  # fmt: skip
    assert max(t.distributions["optimizer.lr"].high for t in first) == 0.1
    done = qcs("train", *options, "hydra.sweeper.n_trials=4", cwd=tmp_path)
    trials = study(tmp_path).trials
    assert len(trials) == 4 and [t.params for t in trials[:2]] == [t.params for t in first]
    assert len({t.params["optimizer.lr"] for t in trials}) == 4
    assert "best: trial" in done.stdout
    rows = table(tmp_path)
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["folder"].split(",")[0] for row in rows] == ["0", "1", "2", "3"]
    assert all("optimizer.lr=" in row["folder"] for row in rows)
    assert [float(r["val/acc"]) for r in rows] == pytest.approx([t.value for t in trials])
    for name in ("history.png", "importance.png"):
        assert (tmp_path / "sweep" / name).stat().st_size > 5000


def test_bad_trials_are_pruned_and_failing_ones_recorded(data, tmp_path):
    options = [*SEARCH, data, "trainer.max_epochs=3", "loss.label_smoothing=0", "scheduler=none"]
    options += ["model.cross.drop=0", "optimizer.lr=choice(0.003)"]
    qcs("train", *options, "hydra.sweeper.n_trials=1", cwd=tmp_path)
    one = study(tmp_path)
    assert one.trials[0].params == {"optimizer.lr": "0.003"}
    for _ in range(6):  # as if better ones had been tried
        one.add_trial(
            optuna.trial.create_trial(
                value=0.9,
                params=one.trials[0].params,
                distributions=one.trials[0].distributions,
                intermediate_values=dict.fromkeys(range(3), 0.9),
            )
        )
    qcs("train", *options, "hydra.sweeper.n_trials=8", cwd=tmp_path)
    pruned = study(tmp_path).trials[-1]
    assert pruned.state == TrialState.PRUNED and len(pruned.intermediate_values) < 3
    assert table(tmp_path)[-1]["state"] == "pruned"


def test_a_search_whose_trials_fail_says_why_and_gives_up(data, tmp_path):
    options = [*SEARCH, data, "hydra.sweeper.n_trials=9", "hydra.sweeper.n_jobs=2", "sam.rho=-1"]
    done = qcs("train", *options, cwd=tmp_path, ok=False)
    assert (
        "4 trials in a row failed; the last said: sam.rho=-1 should be greater than or equal to 0"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert [t.state for t in study(tmp_path).trials] == [TrialState.FAIL] * 4
    assert [row["state"] for row in table(tmp_path)] == ["failed"] * 4


def test_several_metrics_and_what_makes_no_sense(data, tmp_path):
    two = ["optimized_metric=[val/acc,val/f1]", "hydra.sweeper.direction=[maximize,maximize]"]
    options = [*SEARCH, data, "trainer.max_epochs=1", "hydra.sweeper.n_trials=1", *two]
    done = qcs("train", *options, cwd=tmp_path, ok=False)
    assert "several metrics cannot be pruned by" in done.stderr
    qcs("train", *options, "hydra.sweeper.pruner=null", cwd=tmp_path)
    assert len(study(tmp_path).trials[0].values) == 2
    wrong = [*SEARCH, "+hydra.sweeper.space.seed={low:1}"]
    done = qcs("train", *wrong, cwd=tmp_path, ok=False)
    assert "seed is {'low': 1}, expected {low, high, log, step}" in done.stderr


def test_a_grid_runs_side_by_side_as_one_after_the_other(data, tmp_path):
    grid = ["-m", *FEW, data, "trainer.max_epochs=1", "seed=1,2", "logger=wandb"]
    qcs("train", *grid, "hydra.sweep.dir=sweep", cwd=tmp_path)
    serial = table(tmp_path)
    (tmp_path / "sweep").rename(tmp_path / "serial")
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = qcs("train", *grid, *joblib, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert table(tmp_path) == serial
    share = threads.of_jobs(2)["OMP_NUM_THREADS"]
    assert f"2 jobs side by side: OMP_NUM_THREADS={share} in each" in done.stdout
    for seed in (1, 2):
        assert f"threads: {share}," in (tmp_path / f"sweep/seed={seed}/train.log").read_text()
    assert [row["seed"] for row in serial] == ["1", "2"]
    folders = [f"{sweep}/seed={seed}" for sweep in ("serial", "sweep") for seed in (1, 2)]
    assert {row["folder"] for row in serial} == {"seed=1", "seed=2"}
    for folder in folders:  # a W&B run each
        assert len(list((tmp_path / folder / "wandb").glob("offline-run-*"))) == 1


def test_jobs_of_several_models_share_a_folder(data, tmp_path):
    grid = ["-m", *FEW, data, "trainer.max_epochs=1", "ablation=none,base", "test=true"]
    qcs("train", *grid, "optimized_metric=null", cwd=tmp_path)
    (found,) = tmp_path.glob("runs/sweeps/*/summary.csv")
    with found.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ablation"] for row in rows] == ["none", "base"]
    for row in rows:
        folder = found.parent / f"ablation={row['ablation']}"
        tested = json.loads((folder / "test/metrics.json").read_text())
        assert folder.name == row["folder"]
        assert float(row["test/acc"]) == tested["acc"] and float(row["test/f1"]) == tested["f1"]
    # A path with such signs need not be quoted, and the same command goes on with the jobs.
    where = f"ckpt={folder.relative_to(tmp_path)}/checkpoints/best.ckpt"
    qcs("eval", where, data, "device=cpu", cwd=tmp_path)
    done = qcs("train", *grid, "ckpt=auto", f"hydra.sweep.dir={found.parent}", cwd=tmp_path)
    assert done.stdout.count("nothing is left to train") == 2
    assert [row["folder"] for row in rows] == ["ablation=none", "ablation=base"]


def test_a_failing_job_is_in_the_table_and_the_others_go_on(data, tmp_path):
    """Whatever the order; with a key deleted."""
    grid = ["-m", *FEW, data, "trainer.max_epochs=1", "sam.rho=-1.0,0.0", "hydra.sweep.dir=sweep"]
    grid += ["~callbacks.learning_rate"]
    done = qcs("train", *grid, cwd=tmp_path, ok=False)
    assert "error: sam.rho=-1.0 should be greater than or equal to 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert [row["state"] for row in table(tmp_path)] == ["failed", "done"]


def test_jobs_of_several_processes_are_refused(data, tmp_path):
    grid = ["-m", *FEW, data, "seed=1,2", "trainer=ddp", "trainer.accelerator=cpu"]
    done = qcs("train", *grid, "trainer.devices=2", cwd=tmp_path, ok=False)
    assert "write trainer.devices=1" in done.stderr and "submitit_slurm" in done.stderr


def test_the_sweep_of_wandb_composes(tmp_path):
    sweep = yaml.safe_load((CONF.parent / "scripts/wandb_sweep.yaml").read_text())
    overrides = [a for a in sweep["command"][3:] if "=" in a]
    for key, node in sweep["parameters"].items():
        overrides.append(f"{key}={node['values'][0] if 'values' in node else node['min']}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = resolve(compose("train", [*overrides, f"run_dir={tmp_path}"]), Settings)
    assert found["optimizer"]["lr"] == 0.0001 and found["logger"]["wandb"]
    assert sweep["metric"]["name"] == found["optimized_metric"]
