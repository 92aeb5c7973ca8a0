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
from qcs.training.loggers import complete

log = logging.getLogger(__name__)

STOPPED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT  # exit statuses


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after every epoch, at intervals within one, and when asked to stop.

    On SIGTERM, which SLURM sends before it preempts, and on Ctrl-C, the batch (and its optimiser
    step) is finished, last.ckpt is written, and the process ends with status 143 or 130; a second
    Ctrl-C stops at once. A loss that is not finite leaves nonfinite.ckpt and nonfinite.json behind.
    A run that goes on within an epoch ends with
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
        self._step, self._saved, self._status = 0, 0.0, STOPPED
        self._handlers: dict[signal.Signals, Any] = {}
        self.metrics: dict[str, float] = {}  # of the last epoch
        self.row: dict[str, float] = {}  # what loggers get of it once it has been saved
        self.stopped_early = False

    @property
    def best_model_path(self) -> str:
        """For a run that selects nothing."""
        return str(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what a finished run that goes on does not measure again."""
        return {"metrics": self.metrics, "row": self.row, "stopped_early": self.stopped_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self.metrics, self.stopped_early = state_dict["metrics"], state_dict["stopped_early"]
        self.row = state_dict.get("row", {})

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run whose folder was moved keep its best one, which Lightning would forget."""
        here = self.folder.resolve()
        if Path(trainer.ckpt_path or "").resolve().parent != here:
            return

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                state["dirpath"] = str(here)
                state["best_k_models"] = {moved(k): v for k, v in state["best_k_models"].items()}
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = moved(state[key])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run at its end that was stopped early, unless nothing would stop it now."""
        if self.stopped_early and trainer.early_stopping_callbacks:
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; listen for SIGTERM, in place of Lightning, which loses the epoch."""
        complete(trainer.loggers, self.row)
        self._step, self._saved = trainer.global_step, time.monotonic()

        def ask(number: int, _: Any) -> None:
            if number == signal.SIGINT and self._status == INTERRUPTED:
                raise KeyboardInterrupt  # the second Ctrl-C
            self._status = 128 + number
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            log.warning("asked to stop (%s): finishing the step, then saving%s", name, again)
            pl_module.watch.asked_to_stop = True

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if (
                    signal.getsignal(number) is not signal.SIG_IGN
                ):  # as in the background of a script
                    self._handlers[number] = signal.signal(number, ask)

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
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        means = {k: v for k, v in self.metrics.items() if k.endswith("_epoch")}
        step = trainer.fit_loop.total_batch_idx
        self.row = {**means, "epoch": trainer.current_epoch, "step": step} if means else {}
        self.stopped_early = bool(trainer.should_stop)
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
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
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
            log.warning(
                "stopped at step %d and saved; go on with the same command and hydra.run.dir=%s "
                "ckpt=last",
                trainer.global_step,
                self.folder.parent,
            )
            raise SystemExit(self._status)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
