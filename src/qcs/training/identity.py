"""What makes a training run the one that it is: its data and the settings that decide its weights.

They travel in every checkpoint, as plain data, so that a run only goes on as itself.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)

# Everything else may change when a run goes on: devices, loader processes, epochs, loggers, ...
DECISIVE = (
    "seed",
    "select_on",
    "backbone",
    "model",
    "loss",
    "augment",
    "optimizer",
    "scheduler",
    "sam",
    "accumulate_grad_batches",
    "gradient_clip_norm",
    "loader.batch_size",
    "loader.groups_per_image",
    "loader.negatives",
    "loader.anchors",
    "loader.samples_per_epoch",
    "loader.val_fraction",
    "trainer.precision",
    "callbacks",
)
# These only save, show and log.
WATCHERS = ("last", "dashboard", "learning_rate", "epoch_log")
# A schedule of steps was laid out for a number of them.
LENGTH = tuple(
    f"trainer.{key}"
    for key in ("max_epochs", "max_steps", "limit_train_batches", "overfit_batches")
)


def identity(config: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """What a run is: plain data for its checkpoints.

    Args:
        config: plain and checked, of conf/train.yaml.
        manifest: the data set, with what was held out.
    """
    data = {
        "name": manifest.root.name,
        "images": len(manifest),
        "class_names": list(manifest.class_names),
        "fingerprint": manifest.fingerprint(),
    }
    return {"data": data, "settings": settings(config)}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's weights, by their keys on the command line."""
    callbacks = config["callbacks"] or {}
    kept = {k: v for k, v in callbacks.items() if k not in WATCHERS}
    found = _flat(config | {"callbacks": _without_folders(kept)})
    keys = DECISIVE + (LENGTH if (config["scheduler"] or {}).get("interval") == "step" else ())
    return {k: v for k, v in found.items() if any(k == d or k.startswith(f"{d}.") for d in keys)}


def _without_folders(callbacks: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {k: v for k, v in (node or {}).items() if k != "dirpath"}
        for name, node in callbacks.items()
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys; what is null is as good as absent."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def require_same(saved: dict[str, Any] | None, now: dict[str, Any], ckpt: Path) -> None:
    """Refuse to go on with a run as another one.

    Args:
        saved: identity in the checkpoint; None in those of older versions.
        now: identity of this command.
        ckpt: the checkpoint, for the sentence.

    Raises:
        UserError: the data or settings that decide the weights are others; names them.
    """
    if saved is None:
        log.warning(
            "%s is of an older version and does not say what it was trained with: make sure that "
            "the data and the settings are the same",
            ckpt,
        )
        return
    _same_settings(saved["settings"], now["settings"], ckpt)
    if saved["data"] != now["data"]:
        raise UserError(
            f"{ckpt} was trained on other data: {_told(saved['data'])}; and now it is "
            f"{_told(now['data'])}: name the run's own data set, or start a new run in another "
            "folder with hydra.run.dir=..."
        )


def _same_settings(saved: dict[str, Any], now: dict[str, Any], ckpt: Path) -> None:
    changed = [key for key in sorted(saved.keys() | now) if saved.get(key) != now.get(key)]
    stops = "callbacks.early_stopping."
    stopping = [any(key.startswith(stops) for key in part) for part in (saved, now)]
    if not all(stopping):  # whether a run stops early may change, but not how it counts
        changed = [key for key in changed if not key.startswith(stops)]
    if changed:
        shown = ", ".join(f"{k}={now.get(k)} (the run has {saved.get(k)})" for k in changed[:6])
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise UserError(
            f"a run cannot go on with other settings than it began with: {shown}{more}; "
            f"leave them as they are to go on from {ckpt}, or start a new run without ckpt"
        )


def _told(data: dict[str, Any]) -> str:
    names = data["class_names"]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"{data['images']} images of {len(names)} classes ({shown}) in {data['name']}, "
        f"fingerprint {data['fingerprint'][:8]}"
    )
