"""The callback that saves last.ckpt and stops a run when it is asked to."""

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from qcs.checkpoints.files import LAST, copy, last
from qcs.config.bounds import Count, Positive
from qcs.config.errors import exit_status
from qcs.training.distributed import NonFiniteLoss, StepFlags, is_first_process
from qcs.training.loggers import complete
from qcs.training.module import QCSModule
from qcs.training.run_folder import go_on
from qcs.training.trainer_attributes import data_module, is_dry_run

log = logging.getLogger(__name__)

# Exit statuses of a run that SIGTERM or Ctrl-C has stopped.
STOPPED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT


@contextmanager
def exit_on_interrupt(folder: Path) -> Iterator[None]:
    """End the process with one message if Ctrl-C or SIGTERM stops a run without saving it.

    The run's folder may hold an earlier checkpoint to resume from.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        cause = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
        if not isinstance(cause, KeyboardInterrupt):
            raise
        if not is_first_process():
            pass  # the first one says it
        elif last(folder):
            log.warning(
                "interrupted; go on from where it was last saved with the same command and %s",
                go_on(folder),
            )
        else:
            log.warning("interrupted before anything was saved")
        raise SystemExit(exit_status(cause)) from None


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after every epoch, at intervals within one, and when asked to stop.

    SLURM sends SIGTERM before it preempts a job. On SIGTERM and on Ctrl-C the optimiser step is
    finished, last.ckpt is written, and the process ends with status 143 or 130; a second Ctrl-C
    stops at once. A loss that is not finite leaves nonfinite.ckpt and nonfinite.<rank>.json behind.

    A run that is resumed within an epoch ends with the same weights as an uninterrupted one. The
    logged training means of that epoch are over the rest of it alone.

    Lightning's `ModelCheckpoint` supports only one kind of interval at a time, and it also saves
    between the batches of an accumulated step.

    Args:
        every_n_steps: number of optimiser steps between two checkpoints within an epoch; None
            saves none by steps.
        every_n_minutes: number of minutes between two checkpoints within an epoch; None saves none
            by the clock.
    """

    def __init__(
        self,
        dirpath: str,
        every_n_steps: Count | None = None,
        every_n_minutes: Positive | None = None,
    ) -> None:
        self.folder = Path(dirpath)
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._step, self._saved, self._status = 0, 0.0, STOPPED
        self._handlers: dict[signal.Signals, Any] = {}
        self.metrics: dict[str, float] = {}  # of the last epoch
        self.row: dict[str, float] = {}  # what loggers get of it once it has been saved
        self.stopped_early = False

    @property
    def best_model_path(self) -> str:
        """The path of last.ckpt, which is tested in a run that selects no checkpoint."""
        return str(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what a finished run that goes on does not measure again."""
        return {"metrics": self.metrics, "row": self.row, "stopped_early": self.stopped_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint has of this callback."""
        self.metrics = state_dict.get("metrics", {})
        self.stopped_early = state_dict.get("stopped_early", False)
        row = state_dict.get("row", {})
        self.row = {key: value for key, value in row.items() if isinstance(value, (int, float))}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look for the best checkpoints beside the file, wherever its author had them.

        A run that goes on in a new folder takes copies of them along. Lightning would otherwise
        forget which is best, in a new folder and in one that has been moved.
        """
        here = Path(trainer.ckpt_path or "").resolve().parent
        own = {
            callback.state_key: callback.dirpath
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint)
        }

        def taken(path: str, folder: str) -> str:
            there = here / Path(path).name
            if not path or not there.is_file():
                return path and str(there)
            if trainer.is_global_zero and not is_dry_run(trainer):
                copy(there, Path(folder))
            return str(Path(folder) / there.name)

        for key, state in checkpoint["callbacks"].items():
            if "best_model_path" in state:
                state["dirpath"] = folder = str(own.get(key) or here)
                kept = state["best_k_models"].items()
                state["best_k_models"] = {taken(path, folder): score for path, score in kept}
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = taken(state[name], folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train a run further that was stopped early, unless early stopping is now off."""
        if self.stopped_early and trainer.early_stopping_callbacks:
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and handle SIGTERM and SIGINT until training ends.

        Lightning's own handlers would lose what the epoch has done.
        """
        complete(trainer.loggers, self.row)
        self._step, self._saved = trainer.global_step, time.monotonic()
        flags = _flags(pl_module)

        def request_stop(number: int, _: Any) -> None:
            if number == signal.SIGINT and self._status == INTERRUPTED:
                raise KeyboardInterrupt  # this is the second Ctrl-C
            self._status = 128 + number
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            if trainer.is_global_zero:
                log.warning("asked to stop (%s): finishing the step, then saving%s", name, again)
            flags.stop_requested = True

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # A shell lets the background processes of a script ignore Ctrl-C.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, request_stop)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save within an epoch, if it is time and an optimiser step has just been taken."""
        if trainer.global_step == self._step or trainer.is_last_batch:
            return
        self._step = trainer.global_step
        if self._due(trainer) or _flags(pl_module).stopping:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of every epoch."""
        self._step = trainer.global_step
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        means = {k: v for k, v in self.metrics.items() if k.endswith("_epoch")}
        step = trainer.fit_loop.total_batch_idx
        self.row = {**means, "epoch": trainer.current_epoch, "step": step} if means else {}
        self.stopped_early = bool(trainer.should_stop)
        if self._asked_to_stop(trainer, pl_module):
            _flags(pl_module).stopping = True
        self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers; stop if that was asked for after the last epoch."""
        self._restore_handlers()
        if self._asked_to_stop(trainer, pl_module):
            self._stop(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """After a loss that is not finite, keep the weights and the names of the batch's files."""
        self._restore_handlers()
        if not isinstance(exception, NonFiniteLoss) or is_dry_run(trainer):
            return
        trainer.save_checkpoint(self.folder / "nonfinite.ckpt", weights_only=False)
        data = data_module(trainer)
        files = data.train.paths[exception.rows] if data else []
        content = {"sentence": str(exception), "files": [list(map(str, group)) for group in files]}
        path = self.folder / f"nonfinite.{trainer.global_rank}.json"
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        log.error("weights before the step in %s, the batch's files in %s", self.folder, path)

    def _due(self, trainer: Trainer) -> bool:
        """Return whether an interval has passed; all processes agree on the answer."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            return True
        if not self.every_n_minutes:
            return False
        late = time.monotonic() - self._saved >= 60 * self.every_n_minutes
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write last.ckpt; end the process if all processes have agreed to stop."""
        if not is_dry_run(trainer):
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self._saved = time.monotonic()
        if _flags(pl_module).stopping:
            self._stop(trainer)

    def _asked_to_stop(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether a process was asked to; all processes agree on the answer."""
        requested = _flags(pl_module).stop_requested
        return trainer.strategy.reduce_boolean_decision(requested, all=False)

    def _stop(self, trainer: Trainer) -> NoReturn:
        """End the process once last.ckpt is written."""
        if trainer.is_global_zero:
            log.warning(
                "stopped at step %d and saved; go on with the same command and %s",
                trainer.global_step,
                go_on(self.folder.parent),
            )
        raise SystemExit(self._status)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


def _flags(module: LightningModule) -> StepFlags:
    assert isinstance(module, QCSModule)
    return module.flags
