"""Runs that are killed, stopped or broken, and what becomes of them."""

import contextlib
import csv
import errno
import json
import os
import signal
import time
from pathlib import Path

import hydra
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_train import FORKS, SMALL, main, qcs

from conftest import tiny_network
from qcs.checkpoints import files
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.config.options import instantiate, resolve
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.sources import synthetic
from qcs.evaluation.apply import apply
from qcs.train import Settings, train
from qcs.training import build, run_folder
from qcs.training.distributed import NonFiniteLoss
from qcs.training.last_checkpoint import INTERRUPTED, STOPPED
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule

pytestmark = pytest.mark.usefixtures("one_thread")

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
    "callbacks=[default,dashboard,mixup]",
    "callbacks.last.every_n_steps=2",
    "test=false",
]


def interrupted(folder: Path, saves: int, how: signal.Signals, *overrides: str) -> int:
    """Start a run, send it a signal once last.ckpt was written so often, return its exit status."""
    file, seen = folder / "run/checkpoints/last.ckpt", set()
    before = {file.stat().st_mtime_ns} if file.exists() else set()
    (folder / "out.txt").touch()
    given = ("qcs.train", (*RUN, "hydra.run.dir=run", *overrides), folder)
    process = FORKS.Process(target=main, args=(*given, *[str(folder / "out.txt")] * 2))
    process.start()
    deadline = time.monotonic() + 120
    while len(seen - before) < saves and process.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # between the two renames of a save
            seen.add(file.stat().st_mtime_ns)
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.join(60)
    return process.exitcode


def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(tmp_path):
    """Within epochs and between them, with workers, dropout, mixup, SAM, a schedule of steps."""
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


def test_a_named_folder_is_the_only_one_and_auto_may_start_anew(tmp_path):
    file = tmp_path / "a/checkpoints/last.ckpt"
    files.AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, file)
    assert files.find("last", tmp_path / "a") == file
    assert files.find("auto", tmp_path / "b") is None
    with pytest.raises(UserError, match="no whole checkpoint in .*b: name the run's folder"):
        files.find("last", tmp_path / "b")
    with pytest.raises(UserError, match="ckpt=last finds the newest"):
        files.find("nowhere.ckpt", tmp_path / "b")
    for odd in ("~nobody-here/last.ckpt", "x" * 300, "x\0y", str(tmp_path)):
        with pytest.raises(UserError):
            files.find(odd, tmp_path / "b")
    assert files.newest_beside(tmp_path / "b") == tmp_path / "a"
    file.rename(file.with_name(files.PREVIOUS))  # killed between the two renames of a save
    assert files.newest_beside(tmp_path / "b") == tmp_path / "a"
    with pytest.raises(UserError, match="no run in .*x has a whole checkpoint"):
        files.newest_beside(tmp_path / "x/y")


def test_an_empty_name_of_a_checkpoint_is_no_new_run(tmp_path):
    with pytest.raises(UserError, match="ckpt= is empty"):
        files.find("", tmp_path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"loops": {}}])
def test_a_file_that_holds_no_run_cannot_be_gone_on_with(content, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="holds no training run to go on with"):
        files.state_of(tmp_path / "other.ckpt")
    (tmp_path / "other.ckpt").write_bytes(b"not at all")
    with pytest.raises(UserError, match="cannot be read"):
        files.state_of(tmp_path / "other.ckpt")


@pytest.mark.parametrize("key,value", [("run", "x"), ("wandb_id", 5), ("global_step", -1)])
def test_what_a_file_says_of_its_run_is_checked(key, value, small, tmp_path):
    content = torch.load(small[0] / "run/checkpoints/last.ckpt", weights_only=True)
    torch.save(content | {key: value}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="cannot be gone on from: "):
        files.state_of(tmp_path / "odd.ckpt")


def test_a_run_that_ends_within_its_first_epoch_is_validated(small, tmp_path):
    assert "val/acc" in trained(tmp_path, *small[1], "+trainer.max_steps=2", "test=false")


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
        callbacks=[instantiate(c) if isinstance(c, dict) else c for c in callbacks.values()],
        plugins=[files.AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def trained(folder: Path, *overrides: str) -> dict[str, float]:
    """Train in this process, as the command does in one of its own; return the metrics."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [*overrides, f"run_dir={folder}"])
    return train(resolve(config, Settings))


@pytest.fixture(scope="module")
def small(tmp_path_factory, one_thread) -> tuple[Path, list[str]]:
    """A folder of drawn faces beside a run of two epochs with an average of the weights in `run`,
    and the options of that run.
    """
    folder = tmp_path_factory.mktemp("runs")
    synthetic.make(folder / "faces", size=32, train=4, val=2, test=4, workers=1)
    options = [*SMALL, f"dataset.path={folder / 'faces'}", "callbacks=[default,ema]"]
    options += ["callbacks.ema.decay=0.9", "scheduler=exponential", "trainer.max_epochs=2"]
    trained(folder / "run", *options)
    return folder, options


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_test_is_of_the_weights_that_its_file_holds(name, small, tmp_path):
    """With an average of the weights, whose file holds those that were trained as well."""
    folder, options = small
    run = folder / "run"
    if name == "last":  # nothing selects, where nothing is validated
        run = tmp_path
        trained(run, *options, "+trainer.limit_val_batches=0", "+trainer.max_steps=5")
    report = json.loads((run / "test/metrics.json").read_text())
    path = run / f"checkpoints/{name}.ckpt"
    assert report["ckpt"] == str(path)
    found = load_checkpoint(path)
    logits = apply(found.network, synthetic.read(folder / "faces").split("test"), found.transform)
    with (run / "test/predictions.csv").open(newline="") as file:
        rows = [
            [float(row[f"p_{name}"]) for name in found.class_names] for row in csv.DictReader(file)
        ]
    torch.testing.assert_close(
        logits.double().softmax(1), torch.tensor(rows).double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "change,sentence",
    [
        (["optimizer.lr=1e-6"], r"optimizer.lr=1e-06 \(the run has"),
        (["backbone.channels=[8,8,32]"], "backbone.channels"),
        (["callbacks.ema.decay=0.5"], "callbacks.ema.decay"),
        (["other data"], "was trained on other data: 70 images of 7 classes"),
        (["fresh folder"], "no whole checkpoint in"),
        (["ckpt=null"], "holds a run already"),
    ],
)
def test_what_is_no_longer_the_run_is_refused_before_anything_is_written(
    change, sentence, small, tmp_path
):
    folder, options = small
    before = contents(folder / "run")
    options = [*options, "ckpt=last", "trainer.max_epochs=3", *change]
    run = folder / "run"
    if change == ["other data"]:
        synthetic.make(tmp_path / "faces", size=32, train=3, val=2, test=4, workers=1)
        options[-1] = f"dataset.path={tmp_path / 'faces'}"
    elif change == ["fresh folder"]:
        run, options = folder / "rum", options[:-1]
    with pytest.raises(UserError, match=sentence):
        trained(run, *options)
    assert contents(folder / "run") == before


def test_a_finished_run_says_so_and_keeps_its_results(small, caplog):
    caplog.set_level("INFO")
    folder, options = small
    before = contents(folder / "run")
    found = trained(folder / "run", *options, "ckpt=auto")
    assert "the run was finished at step" in caplog.text
    after = contents(folder / "run")
    for name in ("test/metrics.json", "csv/metrics.csv", "checkpoints/last.ckpt"):
        assert after[name] == before[name]
    report = json.loads(after["test/metrics.json"])
    assert found["test/acc"] == report["acc"] and found["val/acc"] >= 0


@pytest.mark.parametrize("nothing", ["trainer.max_epochs=0", "+trainer.max_steps=0"])
def test_a_run_that_takes_no_step_is_not_tested(nothing, small, tmp_path, caplog):
    trained(tmp_path, *small[1], nothing)
    assert "no step was taken" in caplog.text
    assert not (tmp_path / "test").exists()
    with pytest.raises(UserError, match="limit_train_batches=0 trains nothing"):
        trained(tmp_path / "b", *small[1], "+trainer.limit_train_batches=0")
    for limit in ("0", "1", "0.5"):
        with pytest.raises(UserError, match="the report at the end is of all test images"):
            trained(tmp_path / "b", *small[1], f"+trainer.limit_test_batches={limit}")
    with pytest.raises(UserError, match="as configured: You requested to check 0.001 of"):
        trained(tmp_path / "c", *small[1], "+trainer.limit_train_batches=0.001")
    with pytest.raises(UserError, match=r"as configured:.*val_check_interval. \(99\) must be"):
        trained(tmp_path / "d", *small[1], "+trainer.val_check_interval=99")


@pytest.mark.parametrize(
    "override,sentence",
    [
        ("callbacks.best.monitor=val/acc5", "callbacks.best.monitor=val/acc5 is not measured; "),
        ("callbacks.best.monitor=test/acc", "there are val/acc, val/mean_acc, val/f1, train/..."),
        ("+scheduler.schedule.last_epoch=5", "ExponentialLR cannot be built"),
    ],
)
def test_what_would_end_the_first_epoch_is_refused_before(override, sentence, small, tmp_path):
    with pytest.raises(UserError, match=sentence):
        trained(tmp_path / "run", *small[1], override)
    assert not (tmp_path / "run").exists()


def test_an_accelerator_that_is_not_there_is_one_sentence(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="Trainer cannot be built.*gpu"):
        trained(tmp_path, *small[1], "trainer.accelerator=gpu")


def last_in(folder: Path, **options) -> dict:
    return {
        "_target_": "qcs.training.last_checkpoint.LastCheckpoint",
        "dirpath": str(folder),
        **options,
    }


def test_a_run_whose_folder_was_moved_keeps_its_best_checkpoint(faces, tmp_path):
    def parts(folder: Path) -> dict:
        best = ModelCheckpoint(folder, "best", "val/acc", mode="max", enable_version_counter=False)
        return {"best": best, "last": last_in(folder)}

    score = fit(faces, tmp_path, parts(tmp_path / "a"), 1).checkpoint_callback.best_model_score
    (tmp_path / "a").rename(tmp_path / "b")
    again = fit(faces, tmp_path, parts(tmp_path / "b"), 1, tmp_path / "b/last.ckpt")
    assert again.checkpoint_callback.best_model_score == score
    assert again.checkpoint_callback.best_model_path == str(tmp_path / "b/best.ckpt")


def test_a_run_in_a_new_folder_takes_its_best_checkpoint_along(faces, tmp_path):
    """Or its first epoch there would be the best, however bad it was."""

    def parts(folder: Path) -> dict:
        best = ModelCheckpoint(folder, "best", "val/acc", mode="max", enable_version_counter=False)
        return {"best": best, "last": last_in(folder)}

    score = fit(faces, tmp_path, parts(tmp_path / "a"), 1).checkpoint_callback.best_model_score
    again = fit(faces, tmp_path, parts(tmp_path / "b"), 1, tmp_path / "a/last.ckpt")
    assert again.checkpoint_callback.best_model_score == score
    assert again.checkpoint_callback.best_model_path == str(tmp_path / "b/best.ckpt")
    one, other = ((tmp_path / name / "best.ckpt").read_bytes() for name in "ab")
    assert one == other


class Interrupts(Callback):
    """Sends Ctrl-C so often in a batch."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        for _ in range(self.times if batch_idx == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)


class InterruptsAtEnd(Callback):
    """Sends Ctrl-C after the last epoch was saved."""

    def on_train_end(self, trainer, pl_module) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_saves(faces, tmp_path, caplog):
    parts = lambda name: {"last": last_in(tmp_path / name / "checkpoints")}  # noqa: E731
    fit(faces, tmp_path, parts("whole"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        fit(faces, tmp_path, {**parts("part"), "ctrl_c": Interrupts(1)})
    assert stop.value.code == INTERRUPTED == 130 and signal.getsignal(signal.SIGINT) is before
    assert f"hydra.run.dir={tmp_path / 'part'} ckpt=last" in caplog.text
    file = tmp_path / "part/checkpoints/last.ckpt"
    assert files.state_of(file).optimizer_steps == 4
    fit(faces, tmp_path, parts("part"), ckpt=file)
    one, other = (
        torch.load(tmp_path / d / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for d in ("whole", "part")
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_ctrl_c_after_the_last_epoch_stops_before_the_test(faces, tmp_path, caplog):
    parts = {"ctrl_c": InterruptsAtEnd(), "last": last_in(tmp_path)}
    with pytest.raises(SystemExit) as stop:
        fit(faces, tmp_path, parts, 1)
    assert stop.value.code == 130 and (tmp_path / "last.ckpt").exists()
    assert "stopped at step" in caplog.text


def test_a_second_ctrl_c_stops_at_once(small, tmp_path, monkeypatch, caplog):
    build_trainer, before = build.trainer, signal.getsignal(signal.SIGINT)

    def interrupted(*arguments: object) -> Trainer:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(Interrupts(2))
        return trainer

    monkeypatch.setattr(build, "trainer", interrupted)
    try:
        with pytest.raises(SystemExit) as stop:
            trained(tmp_path, *small[1])
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    assert stop.value.code == 130
    assert "interrupted before anything was saved" in caplog.text
    with run_folder.locked(tmp_path):  # left free
        pass


def test_an_epoch_that_a_stop_kept_from_the_log_is_logged_when_the_run_goes_on(
    small, tmp_path, monkeypatch
):
    """The checkpoint is written at the epoch's end, and Lightning would log its means after it."""
    build_trainer, (folder, options) = build.trainer, small

    def interrupted(*arguments: object) -> Trainer:
        trainer = build_trainer(*arguments)
        trainer.callbacks.insert(0, Interrupts(1))  # in the last of four batches
        return trainer

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(build, "trainer", interrupted)
        trained(tmp_path / "part", *options)
    assert files.state_of(tmp_path / "part/checkpoints/last.ckpt").optimizer_steps == 4
    trained(tmp_path / "part", *options, "ckpt=last")
    whole, part = (
        list(csv.DictReader((d / "csv/metrics.csv").open()))
        for d in (folder / "run", tmp_path / "part")
    )
    for name in ("train/loss_epoch", "val/acc", "test/acc"):
        first, second = ([(r["step"], r[name]) for r in t if r.get(name)] for t in (whole, part))
        assert first == second and first


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
    assert state.step == 4 and state.within_epoch
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
    options += ["callbacks.early_stopping.patience=1", "optimizer.lr=1e-30", "scheduler=none"]
    options += ["trainer.max_epochs=9", "test=false"]
    found = []
    for more in ([], ["ckpt=last"]):  # the second finds it stopped
        found.append(trained(tmp_path / "run", *options, *more))
        state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
        assert state["epoch"] == 1
    assert found[0]["val/acc"] == found[1]["val/acc"]
    with pytest.raises(UserError, match="early_stopping watches validation"):
        trained(tmp_path / "other", *options, "select_on=last")


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
