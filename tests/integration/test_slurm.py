"""scripts/slurm.sh with stand-ins for srun and scontrol."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/slurm.sh"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}


def submit(
    folder: Path, *arguments: str, status: int = 0, script: Path = SCRIPT, **environment: str
):
    """Run the script; the stand-ins write down how they were called."""
    for name, code in {"srun": status, "scontrol": 0}.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $@" >> calls.txt\nexit {code}\n')
        (folder / name).chmod(0o755)
    env = os.environ | JOB | environment
    env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
    done = subprocess.run([script, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    calls = folder / "calls.txt"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_a_run_on_two_nodes(tmp_path):
    done, calls = submit(tmp_path, "experiment=paper", "seed=3")
    assert done.returncode == 0
    assert calls == [
        "srun python -m qcs.train experiment=paper seed=3 trainer=ddp trainer.num_nodes=2 "
        "trainer.devices=4 hydra.run.dir=runs/slurm-7 ckpt=auto"
    ]


@pytest.mark.parametrize("status", [143, 2])
def test_a_stopped_run_is_queued_again_and_a_failed_one_is_not(status, tmp_path):
    done, calls = submit(tmp_path, "seed=3", status=status)
    assert done.returncode == status
    assert calls[1:] == (["scontrol requeue 7"] if status == 143 else [])


def test_a_task_of_an_array_runs_its_line(tmp_path):
    (tmp_path / "sweep.txt").write_text("seed=0 optimizer.lr=1e-3\nseed=1 optimizer.lr=1e-4\n")
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1"}
    _, calls = submit(tmp_path, "@sweep.txt", "dataset=rafdb", **array)
    assert "qcs.train seed=1 optimizer.lr=1e-4 dataset=rafdb trainer=ddp" in calls[0]
    assert "hydra.run.dir=runs/slurm-5/1 ckpt=auto" in calls[0]
    array["SLURM_ARRAY_TASK_ID"] = "2"
    done, _ = submit(tmp_path, "@sweep.txt", **array)
    assert done.returncode == 2 and "has no line 3" in done.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_a_task_of_an_array_labels_its_share(status, tmp_path):
    given = ("input=photos", "out=faces.parquet")
    script = SCRIPT.with_name("slurm_predict.sh")
    done, calls = submit(tmp_path, *given, status=status, script=script)
    assert calls == ["srun python -m qcs.predict input=photos out=faces.parquet shard=auto"]
    assert done.returncode == status
