"""Checkpoints that survive: written whole or not at all, the one before kept, found again.

`last.ckpt` is renamed into place; the one it replaces stays as `last.previous.ckpt`.
"""

import json
import logging
import os
import shutil
import signal
import threading
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from qcs.watch import NonFiniteLoss

log = logging.getLogger(__name__)

FOLDER, LAST, PREVIOUS = "checkpoints", "last.ckpt", "last.previous.ckpt"
NEARLY_FULL = 16 << 20  # bytes
STOPPED = 128 + signal.SIGTERM  # exit status


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, syncs, renames."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written, for want of space or otherwise; what was there stays.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch wraps what the file raises
            free = shutil.disk_usage(path.parent).free
            part.unlink(missing_ok=True)
            reason = "the disk is full" if free < NEARLY_FULL else str(error).splitlines()[0]
            raise OSError(
                f"cannot write {path}: {reason}; the checkpoint before it is kept: make room and "
                "go on with ckpt=last"
            ) from error
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make renames last."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder to go on from; broken ones are named."""
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if not path.is_file():
            continue
        if _whole(path):
            return path
        log.warning("%s is damaged; going back to the checkpoint before it", path)
    return None


def find(wanted: str, run_dir: Path) -> Path | None:
    """The file that `ckpt=` names.

    Args:
        wanted: "last" or "auto" (None where there is none), or a file.
        run_dir: looked into first, then the newest run beside it.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if wanted not in ("last", "auto"):
        if not Path(wanted).expanduser().is_file():
            raise FileNotFoundError(f"no checkpoint at ckpt={wanted}; ckpt=last finds the newest")
        return Path(wanted).expanduser()
    others = run_dir.parent.glob(f"*/{FOLDER}/{LAST}") if wanted == "last" else []
    runs = [path.parents[1] for path in sorted(others, key=os.path.getmtime, reverse=True)]
    for folder in (run_dir, *runs):
        if path := last(folder):
            return path
    if wanted == "auto":
        log.info("no checkpoint in %s: starting anew", run_dir)
        return None
    raise FileNotFoundError(
        f"no whole checkpoint in {run_dir} or beside it; name the run with hydra.run.dir=... or "
        "the file with ckpt=..."
    )


def state_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: "step" (batches done, as loggers count), "wandb_id"."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    loop = content["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]["current"]
    step = loop["epoch_loop.state_dict"]["_batches_that_stepped"]
    step += batches["ready"] - batches["completed"]  # 1 in a checkpoint within an epoch
    return {"step": step, "wandb_id": content.get("wandb_id")}


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after every epoch, at intervals within one, and when asked to stop.

    On SIGTERM, which SLURM sends before it preempts, the batch (and its optimiser step) is
    finished, last.ckpt is written, and the process ends with status 143. A loss that is not finite
    leaves nonfinite.ckpt and nonfinite.json behind. A run that goes on within an epoch ends with
    the same weights; that epoch's training means are over the rest of it.

    Lightning's `ModelCheckpoint` saves at one kind of interval only, and between the batches of an
    accumulated step.

    Args:
        dirpath: folder of the checkpoints.
        every_n_steps: optimiser steps; None for none within an epoch.
        every_n_minutes: the same by the clock.
    """

    def __init__(
        self, dirpath: str, every_n_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        if (every_n_steps or 1) < 1 or (every_n_minutes or 1) <= 0:
            raise ValueError(
                "callbacks.last.every_n_steps and every_n_minutes must be above 0 or null, got "
                f"{every_n_steps} and {every_n_minutes}"
            )
        self.folder = Path(dirpath)
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._step, self._saved, self._handler = 0, 0.0, None

    @property
    def best_model_path(self) -> str:
        """For a run that selects nothing."""
        return str(self.folder / LAST)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and listen for SIGTERM, in place of Lightning, which loses the epoch."""
        self._step, self._saved = trainer.global_step, time.monotonic()

        def ask(*_: Any) -> None:
            log.warning("asked to stop (SIGTERM): finishing the step, then saving")
            pl_module.watch.asked_to_stop = True

        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save within an epoch, where an optimiser step has just been taken."""
        if trainer.global_step == self._step or trainer.is_last_batch:
            return
        self._step = trainer.global_step
        if self._due(trainer) or pl_module.watch.stopping:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._step = trainer.global_step
        watch = pl_module.watch
        asked = trainer.strategy.reduce_boolean_decision(watch.asked_to_stop, all=False)
        watch.stopping = watch.stopping or asked
        self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no longer."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what shows how the loss ceased to be finite."""
        self._restore()
        if not isinstance(exception, NonFiniteLoss) or trainer.fast_dev_run:
            return
        trainer.save_checkpoint(self.folder / "nonfinite.ckpt", weights_only=False)
        files = trainer.datamodule.train.paths[exception.rows] if trainer.datamodule else []
        content = {"sentence": str(exception), "files": [list(map(str, group)) for group in files]}
        path = self.folder / f"nonfinite.{trainer.global_rank}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        log.error("weights before the step in %s, the batch's files in %s", self.folder, path)

    def _due(self, trainer: Trainer) -> bool:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            return True
        if not self.every_n_minutes:
            return False
        late = time.monotonic() - self._saved >= 60 * self.every_n_minutes
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self._saved = time.monotonic()
        if pl_module.watch.stopping:
            log.warning("stopped at step %d; go on with ckpt=last", trainer.global_step)
            raise SystemExit(STOPPED)

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None
