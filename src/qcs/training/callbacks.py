"""Callbacks of a training: lines in the log, a short progress bar, an end with the base alone.

The others are elsewhere: `last_checkpoint` saves last.ckpt and stops a run when asked to,
`dashboard` draws pictures, and the average of the weights (conf/callbacks/ema.yaml), early stopping
and best.ckpt are Lightning's own.
"""

import logging
import math
import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from qcs.config.bounds import Count, Probability
from qcs.config.errors import UserError
from qcs.training.cuda_graphs import CudaGraph

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Writes one line for each epoch to the run's log, where the progress bar leaves nothing.

    Where the output is not a terminal, there is no progress bar. Then further lines say how far
    the run is.

    Args:
        every_n_seconds: seconds between two of the further lines; None writes none.
    """

    def __init__(self, every_n_seconds: Count | None = 30) -> None:
        self.every_n_seconds = every_n_seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._epoch_start = self._last_line = self._run_start = time.monotonic()
        self._first_batch = self._batches(trainer)
        self._images = 0
        self._validated = -1  # the epoch of the last validation

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Log how far the run is, if it is time."""
        self._images += batch["images"].shape[:2].numel() * trainer.world_size
        now = time.monotonic()
        if self.every_n_seconds is None or sys.stdout.isatty():
            return
        if now - self._last_line < self.every_n_seconds:
            return
        rate = self._images / (now - self._last_line)
        self._last_line, self._images = now, 0
        done, total = self._batches(trainer), self._total(trainer)
        values = [f"epoch {_of(trainer.current_epoch + 1, trainer.max_epochs)}"]
        values.append(f"batch {_of(batch_idx + 1, trainer.num_training_batches)}")
        if (loss := trainer.callback_metrics.get("train/loss_step")) is not None:
            values.append(f"train/loss {float(loss):.4f}")
        values.append(f"{rate:.0f} images/s")
        if total is not None and done > self._first_batch:
            seconds = (now - self._run_start) / (done - self._first_batch)  # for each batch
            left = seconds * max(total - done, 0)
            values.append(f"{_clock(left)} left")
        log.info(", ".join(values))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch was validated; Lightning keeps the values of the last that was."""
        self._validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the loss, the accuracies and the duration of the epoch."""
        shown = ["train/loss_epoch", "train/acc_epoch"]
        if self._validated == trainer.current_epoch:
            shown += ["val/acc", "val/mean_acc"]
        metrics = trainer.callback_metrics
        values = " ".join(
            f"{k.removesuffix('_epoch')} {metrics[k]:.4f}" for k in shown if k in metrics
        )
        seconds = time.monotonic() - self._epoch_start
        epoch = _of(trainer.current_epoch + 1, trainer.max_epochs)
        log.info("epoch %s %s (%.0f s)", epoch, values, seconds)
        self._epoch_start = time.monotonic()

    @staticmethod
    def _batches(trainer: Trainer) -> int:
        """Return the number of training batches since the beginning of the run."""
        return trainer.fit_loop.total_batch_idx + 1

    @staticmethod
    def _total(trainer: Trainer) -> float | None:
        """Return the number of training batches of the whole run; None if its end is unknown."""
        epochs, batches = trainer.max_epochs, trainer.num_training_batches
        totals = [epochs * batches] if epochs not in (None, -1) and batches != math.inf else []
        if trainer.max_steps != -1 and trainer.global_step:
            batches_per_step = EpochLog._batches(trainer) / trainer.global_step
            totals.append(trainer.max_steps * batches_per_step)
        return min(totals, default=None)


class DropCross(Callback):
    """Takes the loss of the cross half away in the last epochs.

    Args:
        after: share of the run's epochs that train with it.

    Raises:
        UserError: the loss has no `cross_weight`, or the run's epochs are not known.
    """

    def __init__(self, after: Probability = 0.7) -> None:
        self.after = after

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the weight; an epoch that is resumed within has no other start."""
        loss: Any = pl_module.loss
        if not hasattr(loss, "cross_weight") or trainer.max_epochs in (None, -1):
            raise UserError(
                "callbacks.drop_cross needs loss=paper, or another with a cross_weight, and "
                "trainer.max_epochs"
            )
        if loss.cross_weight and trainer.current_epoch >= self.after * trainer.max_epochs:
            loss.cross_weight = 0.0
            graph: CudaGraph | None = getattr(pl_module, "cuda_graph", None)
            if graph is not None:
                graph.forget()


def _of(number: int, total: float | None) -> str:
    """Write a number and its total, "3/10", or the number alone if there is no total."""
    known = total not in (None, -1, math.inf)
    return f"{number}/{total}" if known else str(number)


def _clock(seconds: float) -> str:
    """Write a duration in hours and minutes, or in minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, short enough for a terminal of 80 columns.

    Epochs count from 1, and of the metrics only the loss is shown.
    """

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss alone; the scores of an epoch have their own line in the log."""
        loss = super().get_metrics(trainer, pl_module).get("train/loss_step")
        return {} if loss is None else {"loss": loss}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {_of(current_epoch + 1, self.trainer.max_epochs)}"
