"""A run goes on as itself or not at all, with a state that fits it, before anything is written."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from conftest import three_colours, tiny_network
from qcs.checkpoints import files, reading
from qcs.config.compose import compose
from qcs.config.errors import UserError
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.training.last_checkpoint import LastCheckpoint
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule
from qcs.training.resume import BEFORE, identity, require_fitting, require_same
from qcs.training.schedules import one_cycle

CONFIG = {
    "seed": 0,
    "select_on": "val",
    "run_dir": "runs/a",
    "test": True,
    "ckpt": None,
    "backbone": {"_target_": "qcs.models.IR", "channels": [8, 16], "weights": None},
    "model": {"roles": 4, "cross": {"similarity": {"mode": "cosine"}}},
    "optimizer": {"lr": 0.001},
    "scheduler": {"interval": "epoch", "schedule": None},
    "sam": {"rho": 0.0},
    "loader": {"batch_size": 8, "num_workers": 2, "eval_batch_size": 128},
    "trainer": {"max_epochs": 9, "devices": 1, "precision": "32-true"},
    "callbacks": {
        "best": {"monitor": "val/acc", "dirpath": "runs/a/checkpoints"},
        "last": {"every_n_steps": None},
        "early_stopping": {"patience": 3},
    },
    "logger": {"csv": {"save_dir": "runs/a"}},
}
CKPT = Path("runs/a/checkpoints/last.ckpt")


def changed(key: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[name] = value
    return config


@pytest.mark.parametrize(
    "key,value",
    [
        ("run_dir", "elsewhere"),
        ("test", False),
        ("loader.num_workers", 0),
        ("trainer.max_epochs", 20),
        ("trainer.devices", 2),
        ("logger", None),
        ("callbacks.last.every_n_steps", 100),
        ("callbacks.best.dirpath", "elsewhere"),
        ("callbacks.early_stopping", None),
        ("callbacks.dashboard", {"every_n_epochs": 3}),
        ("loss", {}),
        ("speed", {"roles": "together"}),
        ("trainer.sync_batchnorm", False),
    ],
)
def test_what_decides_no_weight_may_change(key, value, faces):
    require_same(identity(CONFIG, faces), identity(changed(key, value), faces), CKPT)


@pytest.mark.parametrize(
    "key,value",
    [
        ("optimizer.lr", 1e-6),
        ("backbone.channels", [8, 32]),
        ("backbone.weights", "faces.pt"),
        ("model.cross", None),
        ("model.cross.similarity.mode", "dot"),
        ("sam.rho", 0.05),
        ("loader.batch_size", 4),
        ("seed", 1),
        ("callbacks.early_stopping.patience", 9),
        ("callbacks.ema", {"_target_": "lightning.pytorch.callbacks.EMAWeightAveraging"}),
        ("loss", {"class_weights": "balanced"}),
        ("trainer.limit_train_batches", 4),
        ("trainer.sync_batchnorm", True),
        ("speed", {"roles": "joint"}),
    ],
)
def test_what_decides_the_weights_may_not_and_is_named(key, value, faces):
    with pytest.raises(UserError, match="cannot go on with other settings") as caught:
        require_same(identity(CONFIG, faces), identity(changed(key, value), faces), CKPT)
    assert key in str(caught.value)


def test_dropping_the_cross_half_late_keeps_the_length(faces):
    with_it = changed("callbacks.drop_cross", {"after": 0.7})
    longer = {**with_it, "trainer": {**with_it["trainer"], "max_epochs": 20}}
    with pytest.raises(UserError, match="trainer.max_epochs=20"):
        require_same(identity(with_it, faces), identity(longer, faces), CKPT)


def test_a_schedule_of_steps_keeps_its_length(faces):
    runs = []
    for epochs in (9, 20):
        config = changed("trainer.max_epochs", epochs)
        config["scheduler"] = {"interval": "step"}
        runs.append(identity(config, faces))
    with pytest.raises(UserError, match=r"trainer.max_epochs=20 \(the run has 9\), on which the"):
        require_same(*runs, CKPT)


def test_other_data_of_the_same_name_is_another_run(faces, monkeypatch):
    run = identity(CONFIG, faces)
    require_same(run, identity(CONFIG, replace(faces, root=Path("moved") / faces.root.name)), CKPT)
    monkeypatch.chdir(faces.root)
    require_same(run, identity(CONFIG, replace(faces, root=Path())), CKPT)
    names = ("red", "green", "violet")
    for other in (
        replace(faces, class_names=names),
        faces.select(range(1, len(faces))),
        replace(faces, labels=faces.labels[::-1].copy()),
    ):
        with pytest.raises(UserError, match="was trained on other data: 54 images of 3 classes"):
            require_same(run, identity(CONFIG, other), CKPT)


def test_a_run_from_before_an_option_goes_on_without_it(faces):
    before = identity(CONFIG, faces)
    options = {"blur": 0.0, "blur_sigma": [0.1, 2.0]}
    require_same(before, identity(changed("augment", {"train": options}), faces), CKPT)
    blurred = identity(changed("augment", {"train": options | {"blur": 0.3}}), faces)
    with pytest.raises(UserError, match=r"augment.train.blur=0.3 \(the run has 0.0\)"):
        require_same(before, blurred, CKPT)


def test_the_options_that_came_later_stand_in_conf_as_runs_were_before():
    default = compose("train", []).augment.train
    for key, value in BEFORE.items():
        assert default[key.removeprefix("augment.train.")] == value


def test_older_checkpoints_are_told_to_be_unchecked(faces, caplog):
    require_same(None, identity(CONFIG, faces), CKPT)
    assert "does not say what it was trained with" in caplog.text


def new(folder: Path) -> tuple[Trainer, QCSModule]:
    module = QCSModule(
        tiny_network(4),
        QCSLoss(),
        torch.optim.Adam,
        class_names="rgb",
        scheduler={
            "interval": "step",
            "schedule": lambda o, total_steps: one_cycle(o, total_steps, max_lr=0.001),
        },
    )
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys(silent, False) | {"accelerator": "cpu", "default_root_dir": folder}
    last = LastCheckpoint(str(folder), every_n_steps=2)
    del options["enable_checkpointing"]
    return Trainer(max_epochs=1, callbacks=[last], num_sanity_val_steps=0, **options), module


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict, tuple[Trainer, QCSModule]]:
    """A run's folder, what its checkpoint within the epoch holds, and the run that goes on."""
    folder = tmp_path_factory.mktemp("run")
    data = FaceDataModule(
        three_colours(folder),
        transforms.training(16),
        transforms.evaluation(16),
        batch_size=6,
        num_workers=0,
    )
    trainer, module = new(folder)
    trainer.strategy.checkpoint_io = files.AtomicCheckpointIO()
    trainer.fit(module, data)
    return folder, reading.read(folder / "last.previous.ckpt"), new(folder)


def test_a_runs_own_checkpoints_fit(saved):
    folder, within, run = saved
    for content in (within, reading.read(folder / "last.ckpt")):  # the last is at its end
        require_fitting(copy.deepcopy(content), *run, folder)


@pytest.mark.parametrize(
    "place,value",
    [
        ("loops.fit_loop.epoch_progress.current.completed", "x"),
        ("loops.fit_loop.epoch_loop~batch_progress.current", None),
        ("callbacks", []),
        ("callbacks.LastCheckpoint.metrics", "x"),
        ("callbacks.Best", {"best_model_path": "a"}),
        ("optimizer_states", []),
        ("optimizer_states.0.param_groups.0.lr", "x"),
        ("optimizer_states.0.param_groups.0.capturable", True),
        ("optimizer_states.0.state", {}),
        ("optimizer_states.0.state.0", {}),
        ("optimizer_states.0.state.0.exp_avg", torch.zeros(3)),
        ("optimizer_states.0.state.0.exp_avg_sq", "x"),
        ("lr_schedulers.0", {}),
        ("lr_schedulers.0.last_epoch", 10**6),
        ("lr_schedulers.0._anneal_func_type", "x"),
        ("lr_schedulers.0.step", "x"),
        ("state_dict", None),
        ("pytorch-lightning_version", "x"),
    ],
)
def test_anything_else_is_a_sentence(place, value, saved):
    folder, within, run = saved
    content = copy.deepcopy(within)
    *path, last = [int(k) if k.isdecimal() else k.replace("~", ".") for k in place.split(".")]
    node = content
    for key in path:
        node = node[key]
    node[last] = value
    with pytest.raises(UserError, match="does not fit the run that is to go on: .") as error:
        require_fitting(content, *run, folder)
    assert "\n" not in str(error.value)
