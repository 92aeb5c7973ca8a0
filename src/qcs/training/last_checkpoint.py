"""The callback that saves last.ckpt, and stops when asked to."""

import json
import logging
import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from qcs.checkpoints.files import LAST
from qcs.config.bounds import Count, Positive
from qcs.config.errors import UserError
from qcs.training.distributed import NonFiniteLoss

log = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM  # exit status


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
        self,
        dirpath: str,
        every_n_steps: Count | None = None,
        every_n_minutes: Positive | None = None,
    ) -> None:
        if (every_n_steps or 1) < 1 or (every_n_minutes or 1) <= 0:
            raise UserError(
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
