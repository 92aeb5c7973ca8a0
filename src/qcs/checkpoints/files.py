"""Checkpoints that survive: written whole or not at all, the one before kept, found again.

`last.ckpt` is renamed into place; the one it replaces stays as `last.previous.ckpt`.
"""

import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

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
        UserError: nothing is there.
    """
    if wanted not in ("last", "auto"):
        if not Path(wanted).expanduser().is_file():
            raise UserError(f"no checkpoint at ckpt={wanted}; ckpt=last finds the newest")
        return Path(wanted).expanduser()
    others = run_dir.parent.glob(f"*/{FOLDER}/{LAST}") if wanted == "last" else []
    runs = [path.parents[1] for path in sorted(others, key=os.path.getmtime, reverse=True)]
    for folder in (run_dir, *runs):
        if path := last(folder):
            return path
    if wanted == "auto":
        log.info("no checkpoint in %s: starting anew", run_dir)
        return None
    raise UserError(
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
