"""Checkpoints that survive: written whole or not at all, the one before kept, found again.

`last.ckpt` is renamed into place; the one it replaces stays as `last.previous.ckpt`.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from qcs.checkpoints import reading
from qcs.config.errors import UserError

log = logging.getLogger(__name__)

FOLDER, LAST, PREVIOUS = "checkpoints", "last.ckpt", "last.previous.ckpt"
NEARLY_FULL = 16 << 20  # bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, syncs, renames."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: it cannot be written, for want of space or otherwise; what was there stays.
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
            raise UserError(
                f"cannot write {path}: {reason}; the checkpoint before it is kept: make room and "
                "go on with ckpt=last"
            ) from error
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
        _sync(path.parent)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint whose checksums are right, to go on with or to test.

        Raises:
            UserError: it is damaged, or no checkpoint.
        """
        if found := reading.damage(Path(path)):
            raise UserError(f"{path} cannot be read: {found}")
        return super().load_checkpoint(path, *args, **options)


def _sync(folder: Path) -> None:
    """Make renames last."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def last(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder to go on from; broken ones are named."""
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if not path.is_file():
            continue
        if reading.damage(path) is None:
            return path
        log.warning("%s is damaged; going back to the checkpoint before it", path)
    return None


def find(wanted: str, run_dir: Path) -> Path | None:
    """The file that `ckpt=` names.

    Args:
        wanted: "last" or "auto" (None where there is none), or a file.
        run_dir: the run's folder, the only one that is looked into.

    Raises:
        UserError: nothing is there.
    """
    if wanted not in ("last", "auto"):
        missing = f"no checkpoint at ckpt={wanted}; ckpt=last finds the newest"
        return reading.located(wanted, missing)
    if path := last(run_dir):
        return path
    if wanted == "auto":
        log.info("no checkpoint in %s: starting anew", run_dir)
        return None
    raise UserError(
        f"no whole checkpoint in {run_dir}: name the run's folder with hydra.run.dir=... or the "
        "file with ckpt=..., or write ckpt=auto to start anew where there is none"
    )


def newest_beside(run_dir: Path) -> Path:
    """The folder of the newest run that lies beside a folder, and holds something to go on from.

    Raises:
        UserError: there is none.
    """
    found = run_dir.parent.glob(f"*/{FOLDER}/{LAST}")
    for path in sorted(found, key=os.path.getmtime, reverse=True):
        if last(path.parents[1]):
            return path.parents[1]
    raise UserError(
        f"ckpt=last: no run in {run_dir.parent} has a whole checkpoint; name the run's folder "
        "with hydra.run.dir=... or the file with ckpt=..."
    )


class State(NamedTuple):
    """What a checkpoint says of its run."""

    step: int  # batches done, as loggers count them
    optimizer_steps: int
    within_epoch: bool
    wandb_id: str | None
    run: dict[str, Any] | None  # what makes it the one that it is; None in older files


def state_of(path: Path) -> State:
    """Read what a checkpoint says of its run.

    Raises:
        UserError: it cannot be read, or is not of a run that can go on.
    """
    try:
        content = reading.read(path)
        loop = content["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]["current"]
        step = loop["epoch_loop.state_dict"]["_batches_that_stepped"]
        content["optimizer_states"], content["callbacks"]
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no training run to go on with: name a last.ckpt or best.ckpt of "
            "`qcs.train`, or start from its weights with backbone.weights=..."
        ) from error
    within = batches["ready"] - batches["completed"]  # 1 in a checkpoint within an epoch
    data = content.get("FaceDataModule", {})
    return State(
        step=step + within,
        optimizer_steps=content["global_step"],
        within_epoch=data.get("done", 0) > 0,
        wandb_id=content.get("wandb_id"),
        run=content.get("run"),
    )
