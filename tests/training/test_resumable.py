"""What a checkpoint holds is compared with the run that is to go on, before anything is written."""

import copy
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from conftest import three_colours, tiny_network
from qcs.checkpoints import files, reading
from qcs.config.errors import UserError
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.training.last_checkpoint import LastCheckpoint
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule
from qcs.training.resumable import require_fitting
from qcs.training.schedules import one_cycle


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
