"""Callbacks that Lightning does not have."""

import logging
import math
import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from qcs.config.bounds import Count

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Writes one line an epoch to the run's log, readable after the progress bar is gone.

    Where the output is no terminal, and so without a bar, it also says every half minute how far
    the run is.

    Args:
        every_n_seconds: between those lines; None for none.
    """

    def __init__(self, every_n_seconds: Count | None = 30) -> None:
        self.every_n_seconds = every_n_seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._start = self._said = self._began = time.monotonic()
        self._first = self._batches(trainer)
        self._images = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Say how far the run is, where it is time."""
        self._images += batch["images"].shape[:2].numel() * trainer.world_size
        now = time.monotonic()
        quiet = self.every_n_seconds is None or sys.stdout.isatty()
        if quiet or now - self._said < self.every_n_seconds:
            return
        rate, self._said, self._images = self._images / (now - self._said), now, 0
        done, total = self._batches(trainer), self._total(trainer)
        values = [f"epoch {_of(trainer.current_epoch + 1, trainer.max_epochs)}"]
        values.append(f"batch {_of(batch_idx + 1, trainer.num_training_batches)}")
        if (loss := trainer.callback_metrics.get("train/loss_step")) is not None:
            values.append(f"train/loss {float(loss):.4f}")
        values.append(f"{rate:.0f} images/s")
        if total is not None and done > self._first:
            left = (now - self._began) / (done - self._first) * max(total - done, 0)
            values.append(f"{_clock(left)} left")
        log.info(", ".join(values))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log loss, accuracies and seconds."""
        shown = ("train/loss_epoch", "train/acc_epoch", "val/acc", "val/mean_acc")
        metrics = trainer.callback_metrics
        values = " ".join(
            f"{k.removesuffix('_epoch')} {metrics[k]:.4f}" for k in shown if k in metrics
        )
        seconds = time.monotonic() - self._start
        epoch = _of(trainer.current_epoch + 1, trainer.max_epochs)
        log.info("epoch %s %s (%.0f s)", epoch, values, seconds)
        self._start = time.monotonic()

    @staticmethod
    def _batches(trainer: Trainer) -> int:
        """Training batches that are done, of the whole run."""
        return trainer.fit_loop.total_batch_idx + 1

    @staticmethod
    def _total(trainer: Trainer) -> float | None:
        """Training batches of the whole run; None where its end is not known."""
        epochs, batches = trainer.max_epochs, trainer.num_training_batches
        totals = [epochs * batches] if epochs not in (None, -1) and batches != math.inf else []
        if trainer.max_steps != -1 and trainer.global_step:
            share = EpochLog._batches(trainer) / trainer.global_step  # batches of a step
            totals.append(trainer.max_steps * share)
        return min(totals, default=None)


def _of(number: int, total: float | None) -> str:
    known = total not in (None, -1, math.inf)
    return f"{number}/{total}" if known else str(number)


def _clock(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class ProgressBar(RichProgressBar):
    """Lightning's, in one line of a terminal: epochs count from 1, and only the loss is shown."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss; the scores of an epoch have a line of their own."""
        loss = super().get_metrics(trainer, pl_module).get("train/loss_step")
        return {} if loss is None else {"loss": loss}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {_of(current_epoch + 1, self.trainer.max_epochs)}"
