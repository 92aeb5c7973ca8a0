"""Runs that are killed, stopped or broken, and what becomes of them."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from test_train import SMALL, qcs

from conftest import tiny_network
from qcs.checkpoints import files
from qcs.config.errors import UserError
from qcs.config.options import instantiate
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.sources import synthetic
from qcs.training import build
from qcs.training.distributed import NonFiniteLoss
from qcs.training.last_checkpoint import STOPPED
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule

RUN = [
    *SMALL,
    "loader.num_workers=1",
    "loader.batch_size=5",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "model.base.drop=0.2",
    "model.cross.drop=0.2",
    "sam.rho=0.05",
    "augment.train.by=batch",
    "augment.train.jitter=[0.2,0.2,0.2,0.1]",
    "augment.train.erase=0.5",
    "callbacks.last.every_n_steps=2",
    "test=false",
]


def interrupted(folder: Path, saves: int, how: signal.Signals, *overrides: str) -> int:
    """Start a run, send it a signal once last.ckpt was written so often, return its exit status."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(build.__file__).parents[2])}
    command = [sys.executable, "-m", "qcs.train", *RUN, "hydra.run.dir=run", *overrides]
    file, seen = folder / "run/checkpoints/last.ckpt", set()
    before = file.stat().st_mtime_ns if file.exists() else None
    with (folder / "out.txt").open("a") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while len(seen) < saves and process.poll() is None and time.monotonic() < deadline:
            if file.exists() and (stamp := file.stat().st_mtime_ns) != before:
                seen.add(stamp)
            time.sleep(0.005)
        process.send_signal(how)
        return process.wait(60)


def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(tmp_path):
    """Within epochs and between them, with workers, dropout, SAM and a schedule of steps."""
    synthetic.make(tmp_path / "faces", size=32, train=8, val=2, test=2, workers=1)
    data = f"dataset.path={tmp_path / 'faces'}"
    qcs("train", *RUN, data, "hydra.run.dir=whole", cwd=tmp_path)
    assert interrupted(tmp_path, 2, signal.SIGKILL, data) == -signal.SIGKILL
    again = ["ckpt=auto"]
    assert interrupted(tmp_path, 6, signal.SIGKILL, data, *again) == -signal.SIGKILL
    stopped = interrupted(tmp_path, 3, signal.SIGTERM, data, *again)
    assert stopped == STOPPED, (tmp_path / "out.txt").read_text()[-3000:]
    done = qcs("train", *RUN, data, "ckpt=last", "hydra.run.dir=run", cwd=tmp_path)
    assert "run/checkpoints/last.ckpt" in done.stdout.split("going on from ")[1]
    whole, run = (
        torch.load(tmp_path / d / "checkpoints/last.ckpt", weights_only=True)
        for d in ("whole", "run")
    )
    assert whole["global_step"] == run["global_step"] == 48
    for key, value in whole["state_dict"].items():
        assert torch.equal(run["state_dict"][key], value), key
    best = [c["callbacks"] for c in (whole, run)]
    score = [next(v["best_model_score"] for k, v in b.items() if "val/acc" in k) for b in best]
    assert score[0] == score[1]
    tables = [
        list(csv.DictReader((tmp_path / d / "csv/metrics.csv").open())) for d in ("whole", "run")
    ]
    for name in ("train/loss_step", "val/acc"):
        first, second = ({r["step"]: r[name] for r in t if r.get(name)} for t in tables)
        assert len([r for r in tables[1] if r.get(name)]) == len(second)
        common = set(first) & set(second)
        assert {s: first[s] for s in common} == {s: second[s] for s in common}
        assert len(common) >= len(first) - 3  # what a kill took with it was not yet written


def test_last_finds_the_newest_run_and_auto_may_start_anew(tmp_path):
    file = tmp_path / "a/checkpoints/last.ckpt"
    files.AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, file)
    assert files.find("last", tmp_path / "b") == file
    assert files.find("auto", tmp_path / "b") is None
    with pytest.raises(UserError, match="ckpt=last finds the newest"):
        files.find("nowhere.ckpt", tmp_path / "b")
    with pytest.raises(UserError, match="no whole checkpoint"):
        files.find("last", tmp_path / "x/y")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_passed_over(damage, tmp_path, caplog):
    file = tmp_path / "checkpoints/last.ckpt"
    for number in (1, 2):
        content = {"x": torch.full((1000,), float(number))}
        files.AtomicCheckpointIO().save_checkpoint(content, file)
    assert files.last(tmp_path) == file
    data = bytearray(file.read_bytes())
    data[2000] ^= 255
    file.write_bytes({"truncated": data[:-100], "flipped": data, "empty": b""}[damage])
    found = files.last(tmp_path)
    assert torch.load(found, weights_only=True)["x"][0] == 1
    assert "damaged" in caplog.text


@pytest.mark.parametrize("free,sentence", [(0, "the disk is full"), (1 << 40, "No space left")])
def test_a_write_that_fails_keeps_the_checkpoint_before(free, sentence, tmp_path, monkeypatch):
    file = tmp_path / "checkpoints/last.ckpt"
    files.AtomicCheckpointIO().save_checkpoint({"x": 1}, file)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=sentence):
        files.AtomicCheckpointIO().save_checkpoint({"x": 2}, file)
    assert torch.load(file, weights_only=True) == {"x": 1}
    assert [p.name for p in file.parent.iterdir()] == ["last.ckpt"]


def fit(faces, folder: Path, callbacks: dict, epochs: int = 2, ckpt=None, rate=0.01, **options):
    """Train in this process; return the trainer."""
    data = FaceDataModule(
        faces, transforms.training(16), transforms.evaluation(16), batch_size=6, num_workers=0
    )
    module = QCSModule(
        tiny_network(4),
        QCSLoss(),
        lambda p: torch.optim.SGD(p, lr=rate),
        class_names=faces.class_names,
        sam={"rho": 0.05},
        **options,
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[instantiate(c) for c in callbacks.values()],
        plugins=[files.AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def last_in(folder: Path, **options) -> dict:
    return {
        "_target_": "qcs.training.last_checkpoint.LastCheckpoint",
        "dirpath": str(folder),
        **options,
    }


def test_a_loss_that_is_not_finite_stops_before_the_step(faces, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"not finite at step [1-9]"):
        fit(faces, tmp_path, {"last": last_in(tmp_path)}, rate=1e30)
    state = torch.load(tmp_path / "nonfinite.ckpt", weights_only=True)
    assert all(v.isfinite().all() for k, v in state["state_dict"].items() if "running" not in k)
    text = (tmp_path / "nonfinite.0.json").read_text()
    assert text.count("train-") == 6 * 4


def test_an_average_of_the_weights_is_kept_and_resumed(faces, tmp_path):
    ema = {"_target_": "lightning.pytorch.callbacks.EMAWeightAveraging", "decay": 0.9}
    parts = lambda name: {"ema": ema, "last": last_in(tmp_path / name, every_n_steps=4)}  # noqa: E731
    fit(faces, tmp_path, parts("whole"))
    fit(faces, tmp_path, parts("part"), epochs=1)
    fit(faces, tmp_path, parts("part"), ckpt=tmp_path / "part/last.previous.ckpt")
    one, other = (
        torch.load(tmp_path / d / "last.ckpt", weights_only=True) for d in ("whole", "part")
    )
    for group in ("state_dict", "current_model_state"):
        for key, value in one[group].items():
            assert torch.equal(value, other[group][key])
    key = "network.base.pyramid.embed.0.0.weight"
    assert not torch.equal(one["state_dict"][key], one["current_model_state"][key])


def test_a_save_waits_for_the_end_of_an_accumulated_step(faces, tmp_path):
    parts = lambda name: {"last": last_in(tmp_path / name, every_n_minutes=1e-9)}  # noqa: E731
    options = {"accumulate_grad_batches": 4}  # 6 batches an epoch: windows of 4 and 2
    fit(faces, tmp_path, parts("whole"), **options)
    fit(faces, tmp_path, parts("part"), epochs=1, **options)
    state = files.state_of(tmp_path / "part/last.previous.ckpt")
    assert state["step"] == 4
    fit(faces, tmp_path, parts("part"), ckpt=tmp_path / "part/last.previous.ckpt", **options)
    one, other = (
        torch.load(tmp_path / d / "last.ckpt", weights_only=True)["state_dict"]
        for d in ("whole", "part")
    )
    for key, value in one.items():
        assert torch.equal(value, other[key])


def test_early_stopping_stops_and_needs_validation(tmp_path):
    synthetic.make(tmp_path / "faces", size=32, train=4, val=2, test=2, workers=1)
    options = [*SMALL, f"dataset.path={tmp_path / 'faces'}", "callbacks=[default,early_stopping]"]
    options += ["callbacks.early_stopping.patience=1", "optimizer.lr=0", "scheduler=none"]
    options += ["trainer.max_epochs=9", "test=false", "hydra.run.dir=run"]
    qcs("train", *options, cwd=tmp_path)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert state["epoch"] == 1
    done = qcs("train", *options, "select_on=last", cwd=tmp_path, ok=False)
    assert "early_stopping watches validation" in done.stderr


def test_a_run_of_wandb_goes_on_under_its_id(tmp_path):
    synthetic.make(tmp_path / "faces", size=32, train=4, val=2, test=2, workers=1)
    options = [*SMALL, f"dataset.path={tmp_path / 'faces'}", "logger=wandb", "test=false"]
    options += ["hydra.run.dir=run", "scheduler=none"]
    for epochs, more in ((1, []), (2, ["ckpt=last"])):
        qcs("train", *options, f"trainer.max_epochs={epochs}", *more, cwd=tmp_path)
    runs = sorted(p.name for p in (tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(runs) == 2 and len({name.rsplit("-", 1)[1] for name in runs}) == 1
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert runs[0].endswith(state["wandb_id"])
