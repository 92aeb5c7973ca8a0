"""Attributes of Lightning's trainer and callbacks that Lightning sets without declaring them."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from qcs.data.datamodule import FaceDataModule


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a run of a few batches that writes no files (fast_dev_run)."""
    attributes: Any = trainer
    return bool(attributes.fast_dev_run)


def data_module(trainer: Trainer) -> FaceDataModule | None:
    """Return the data module of a run; None where loaders were given to the trainer instead."""
    attributes: Any = trainer
    return attributes.datamodule


def steps_between_logs(trainer: Trainer) -> int:
    """Return the number of batches from one line of the metrics to the next."""
    attributes: Any = trainer
    return attributes.log_every_n_steps


def best_model_path(callback: Checkpoint | None) -> str:
    """Return the path of the selected checkpoint; it is empty where nothing was selected."""
    return getattr(callback, "best_model_path", None) or ""
