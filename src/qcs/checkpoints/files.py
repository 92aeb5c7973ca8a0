"""Writing checkpoints atomically, and finding the newest one that is whole.

`last.ckpt` is renamed into place; the one it replaces stays as `last.previous.ckpt`.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import TypedDict

from qcs.checkpoints import reading
from qcs.config.bounds import Count, Natural
from qcs.config.errors import UserError, reason
from qcs.config.validation import problem
from qcs.data.folders import sync

log = logging.getLogger(__name__)

FOLDER, LAST, PREVIOUS = "checkpoints", "last.ckpt", "last.previous.ckpt"
NEARLY_FULL = 16 << 20  # bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it to the disk, then renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            UserError: it cannot be written, for example because the disk is full. The checkpoint
                that was there before is kept.
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
            cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), error)
            why = "the disk is full" if free < NEARLY_FULL else reason(cause).splitlines()[0]
            raise UserError(
                f"cannot write {path}: {why}; the checkpoint before it is kept: make room and "
                "go on with ckpt=last"
            ) from error
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
        sync(path.parent)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint to resume or to test, after its checksums have been verified.

        Raises:
            UserError: it is damaged, or it is not a checkpoint.
        """
        if found := reading.damage(Path(path)):
            raise UserError(f"{path} cannot be read: {found}")
        return super().load_checkpoint(path, *args, **options)


def copy(path: Path, folder: Path) -> None:
    """Copy a checkpoint into a folder, whole or not at all; where it lies there, it stays."""
    target = folder / path.name
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(path, part)
    part.replace(target)


def last(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint in a run's folder, and warn of damaged ones."""
    for name in (LAST, PREVIOUS):
        path = folder / FOLDER / name
        if not path.is_file():
            continue
        if reading.damage(path) is None:
            return path
        log.warning("%s is damaged; going back to the checkpoint before it", path)
    return None


def find(wanted: str, run_dir: Path) -> Path | None:
    """Return the file that `ckpt=` of a training names.

    Args:
        wanted: "last" or "auto" (None where there is none), or a file.
        run_dir: the run's folder; no other folder is searched.

    Raises:
        UserError: there is no such file, or no undamaged checkpoint.
    """
    if not wanted:
        raise UserError("ckpt= is empty: write last, auto or a file, or ckpt=null for a new run")
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
    """Return the newest folder beside a run's folder that holds a checkpoint to resume.

    Raises:
        UserError: there is none.
    """
    found = [p for name in (LAST, PREVIOUS) for p in run_dir.parent.glob(f"*/{FOLDER}/{name}")]
    for path in sorted(found, key=os.path.getmtime, reverse=True):
        if last(path.parents[1]):
            return path.parents[1]
    raise UserError(
        f"ckpt=last: no run in {run_dir.parent} has a whole checkpoint; name the run's folder "
        "with hydra.run.dir=... or the file with ckpt=..."
    )


class Data(TypedDict):
    """The identity of a run's data."""

    name: str
    images: Natural
    class_names: list[str]
    fingerprint: str


class Run(TypedDict):
    """The identity of a run, see `qcs.training.resume`."""

    data: Data
    settings: dict[str, Any]
    processes: Count


class State(NamedTuple):
    """What a checkpoint records of its run."""

    step: Natural  # batches that were trained on, as loggers count them
    optimizer_steps: Natural
    within_epoch: bool
    wandb_id: str | None
    run: Run | None  # the identity of the run; None in older files
    content: dict[str, Any]  # all of the file


def state_of(path: Path) -> State:
    """Read what a checkpoint records of its run.

    Raises:
        UserError: it cannot be read, or it holds no run that can be resumed.
    """
    try:
        content = reading.read(path)
        loop = content["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]["current"]
        step = loop["epoch_loop.state_dict"]["_batches_that_stepped"]
        content["optimizer_states"], content["lr_schedulers"], content["callbacks"]
        loop["epoch_progress"]
        within = batches["ready"] - batches["completed"]  # 1 in a checkpoint within an epoch
        found = {
            "step": step + within,
            "optimizer_steps": content["global_step"],
            "within_epoch": content.get("FaceDataModule", {"done": 0})["done"] > 0,
            "wandb_id": content.get("wandb_id"),
            "run": content.get("run"),
        }
        found = json.loads(json.dumps(found))  # no objects, and texts for keys
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no training run to go on with: name a last.ckpt or best.ckpt of "
            "`qcs.train`, or start from its weights with backbone.weights=..."
        ) from error
    hints = get_type_hints(State, include_extras=True)
    for key, value in found.items():
        if wrong := problem(value, hints[key], key):
            raise UserError(f"{path} cannot be gone on from: {wrong}")
    return State(**found, content=content)
