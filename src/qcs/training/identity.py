"""The identity of a training run: its data, and the settings that decide its weights.

Every checkpoint holds the identity as plain data. A run can only be resumed with the same data and
the same decisive settings.
"""

import logging
from pathlib import Path
from typing import Any

from qcs.checkpoints.files import Data, Run
from qcs.config.compose import flat
from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)

# Other settings, such as devices, loader processes, epochs and loggers, may change on resuming.
DECISIVE = (
    "seed", "select_on", "backbone", "model", "loss", "augment", "optimizer", "scheduler", "sam",
    "accumulate_grad_batches", "gradient_clip_norm", "loader.batch_size",
    "loader.groups_per_image", "loader.negatives", "loader.anchors", "loader.samples_per_epoch",
    "loader.train_images", "loader.val_fraction", "trainer.precision", "callbacks",
)  # fmt: skip
# Callbacks that save, show and log, but have no effect on the weights.
OBSERVERS = ("last", "dashboard", "learning_rate", "epoch_log")
# A schedule that counts steps depends on the number of steps, and so on these.
LENGTH = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches",
    "trainer.overfit_batches",
)  # fmt: skip


def identity(config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return the identity of a run, of its config and all of its data, for its checkpoints."""
    data = {
        "name": manifest.root.absolute().name,
        "images": len(manifest),
        "class_names": list(manifest.class_names),
        "fingerprint": manifest.fingerprint(),
    }
    return {"data": data, "settings": settings(config)}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's weights, by their keys on the command line."""
    kept = {k: v or {} for k, v in (config["callbacks"] or {}).items() if k not in OBSERVERS}
    found = flat(config | {"callbacks": {k: {**v, "dirpath": None} for k, v in kept.items()}})
    found = {key: value for key, value in found.items() if value not in (None, {})}
    keys = DECISIVE + (LENGTH if (config["scheduler"] or {}).get("interval") == "step" else ())
    return {k: v for k, v in found.items() if any(k == d or k.startswith(f"{d}.") for d in keys)}


def require_same(saved: Run | None, now: dict[str, Any], ckpt: Path) -> None:
    """Check that a run is resumed as the same run, by its identity in the checkpoint and now.

    Checkpoints of older versions have none.

    Raises:
        UserError: the data or the decisive settings differ; the message names them.
    """
    if saved is None:
        log.warning(
            "%s is of an older version and does not say what it was trained with: make sure that "
            "the data and the settings are the same",
            ckpt,
        )
        return
    _same_settings(saved["settings"], now["settings"], ckpt)
    name = saved["data"]["name"] or now["data"]["name"]  # once of a relative path without one
    if {**saved["data"], "name": name} != now["data"]:
        raise UserError(
            f"{ckpt} was trained on other data: {_describe(saved['data'])}; and now it is "
            f"{_describe(now['data'])}: name the run's own data set, or start a new run in another "
            "folder with hydra.run.dir=..."
        )


def require_same_processes(
    saved: Run | None, processes: int, by_step: bool, within_epoch: bool
) -> None:
    """Check that a run is resumed with as many processes as before, where that matters.

    It does where the schedule of the learning rate counts steps, and where the checkpoint was saved
    within an epoch.

    Raises:
        UserError: the number differs, and the schedule or the rest of the epoch depends on it.
    """
    before = saved and saved["processes"]
    if before and before != processes and (by_step or within_epoch):
        reason = "its schedule counts their steps" if by_step else "it stands within an epoch"
        raise UserError(
            f"the run was of {before} processes and would now be of {processes}, "
            f"but {reason}: keep trainer.devices and trainer.num_nodes"
        )


def _same_settings(saved: dict[str, Any], now: dict[str, Any], ckpt: Path) -> None:
    changed = [key for key in sorted(saved.keys() | now) if saved.get(key) != now.get(key)]
    stops = "callbacks.early_stopping."
    stopping = [any(key.startswith(stops) for key in part) for part in (saved, now)]
    if not all(stopping):  # early stopping may be added or removed, but not set differently
        changed = [key for key in changed if not key.startswith(stops)]
    if changed:
        listed = changed[:6]
        had = {key: str(saved.get(key))[:200] for key in listed}
        shown = ", ".join(f"{k}={now.get(k)} (the run has {had[k]})" for k in listed)
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise UserError(
            f"a run cannot go on with other settings than it began with: {shown}{more}; "
            f"leave them as they are to go on from {ckpt}, or start a new run without ckpt"
        )


def _describe(data: Data) -> str:
    names = data["class_names"]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"{data['images']} images of {len(names)} classes ({shown}) in {data['name']}, "
        f"fingerprint {data['fingerprint'][:8]}"
    )
