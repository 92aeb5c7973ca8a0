"""Callbacks that Lightning does not have."""

import logging
import time

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Writes one line an epoch to the run's log, readable after the progress bar is gone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log loss, accuracies and seconds."""
        shown = ("train/loss_epoch", "train/acc_epoch", "val/acc", "val/mean_acc")
        metrics = trainer.callback_metrics
        values = " ".join(
            f"{k.removesuffix('_epoch')} {metrics[k]:.4f}" for k in shown if k in metrics
        )
        seconds = time.monotonic() - self._start
        log.info(
            "epoch %d/%d %s (%.0f s)",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            values,
            seconds,
        )
        self._start = time.monotonic()
