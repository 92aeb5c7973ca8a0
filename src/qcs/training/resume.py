"""Whether a run may go on from a checkpoint: as the same run, with a state that fits it.

Every checkpoint holds the identity of its run as plain data: what it is trained on, and the
settings that decide its weights. A run can only be resumed with the same ones. And a file that
anyone may have written can hold anything in the place of a loop's counts or of an optimiser's
averages. Lightning would put it into its objects without a look, when the run's folder has been
written to, and fail there or steps later.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.migration import migrate_checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qcs.checkpoints.files import Data, Run
from qcs.checkpoints.load import require_fit
from qcs.checkpoints.reading import is_plain
from qcs.config.bounds import MOST
from qcs.config.compose import flat
from qcs.config.errors import UserError
from qcs.data.manifest import Manifest
from qcs.training.module import QCSModule
from qcs.training.schedules import make_schedule

log = logging.getLogger(__name__)

# Other settings, such as devices, loader processes, epochs and loggers, may change on resuming.
DECISIVE = (
    "seed", "select_on", "backbone", "model", "loss", "augment", "optimizer", "scheduler", "sam",
    "accumulate_grad_batches", "gradient_clip_norm", "loader.batch_size",
    "loader.groups_per_image", "loader.negatives", "loader.anchors", "loader.samples_per_epoch",
    "loader.train_images", "loader.val_fraction", "trainer.precision", "callbacks",
    "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
# Callbacks that save, show and log, but have no effect on the weights.
OBSERVERS = ("last", "dashboard", "learning_rate", "epoch_log")
# A schedule that counts steps, and callbacks.drop_cross, depend on how long the run is.
LENGTH = ("trainer.max_epochs", "trainer.max_steps")
# Decisive settings that came later, as a run from before them was trained: it may go on.
BEFORE = {"augment.train.blur": 0.0, "augment.train.blur_sigma": [0.1, 2.0]}
# Values that compute something else than all others of their key, between which a run may change.
OTHERWISE = {"speed.roles": "joint", "trainer.sync_batchnorm": True}


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
    # Where files lie may change; of the teachers' answers it counts whether there are any.
    kept = {k: {**v, "dirpath": None} for k, v in kept.items()}
    kept = {k: {**v, "answers": True} if v.get("answers") else v for k, v in kept.items()}
    found = flat(config | {"callbacks": kept})
    found = {key: value for key, value in found.items() if value not in (None, {})}
    keys: tuple[str, ...] = DECISIVE
    if (config["scheduler"] or {}).get("interval") == "step" or kept.get("drop_cross"):
        keys += LENGTH
    decisive = {
        k: v for k, v in found.items() if any(k == d or k.startswith(f"{d}.") for d in keys)
    }
    return decisive | {k: v for k, v in OTHERWISE.items() if found.get(k) == v}


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
    saved = {k: v for k, v in BEFORE.items() if k in now} | saved
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
        spans = any(key in LENGTH for key in changed)
        why = ", on which the schedule of the learning rate or the loss depends" if spans else ""
        raise UserError(
            f"a run cannot go on with other settings than it began with: {shown}{more}{why}; "
            f"leave them as they are to go on from {ckpt}, or start a new run without ckpt"
        )


def _describe(data: Data) -> str:
    names = data["class_names"]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (
        f"{data['images']} images of {len(names)} classes ({shown}) in {data['name']}, "
        f"fingerprint {data['fingerprint'][:8]}"
    )


def require_fitting(
    content: dict[str, Any], trainer: Trainer, module: QCSModule, ckpt: Path
) -> None:
    """Compare what a checkpoint holds with what this very run would write, before it begins.

    Raises:
        UserError: something is of another kind or shape, or a step cannot be taken with it.
    """
    try:
        migrate_checkpoint(content)  # as Lightning does with a file of an older version
        require_fit(content["state_dict"], module.state_dict())
        _require_like(content["loops"]["fit_loop"], trainer.fit_loop.state_dict(), "loops")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set later
        own = {callback.state_key: callback.state_dict() for callback in callbacks}
        _require_like(content["callbacks"], own, "callbacks")
        for state in content["callbacks"].values():
            if "best_model_path" in state:
                kept = state.get("best_k_models", {})
                scores = [state["best_model_score"], *kept.values()]
                _require_like(scores, [0.0] * len(scores), "callbacks")
                if state["kth_best_model_path"] not in ("", *kept):
                    raise UserError("callbacks name a checkpoint that was not kept")
        _require_step(content, module, trainer.strategy.root_device)
    except Exception as error:  # what the file holds may fail in any way
        why = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{ckpt} does not fit the run that is to go on: {why}") from error


def _require_step(content: dict[str, Any], module: QCSModule, device: torch.device) -> None:
    """Take a step on a copy of the weights, first with a new optimiser and then with the saved one.

    The state of the new one after its step shows what the saved one has to hold.
    """
    weights = [nn.Parameter(p.detach().to(device, copy=True)) for p in module.network.parameters()]
    for weight, trained in zip(weights, module.network.parameters(), strict=True):
        weight.grad = torch.zeros_like(weight) if trained.requires_grad else None
    (saved,) = content["optimizer_states"]
    optimizer = module.make_optimizer(weights)
    schedule = _schedule(content["lr_schedulers"], module, optimizer)
    optimizer.step()
    own: Any = optimizer.state_dict()
    _require_like(saved["param_groups"], own["param_groups"], "optimizer_states")
    if own["state"] and not saved["state"] and content["global_step"]:
        raise UserError("optimizer_states is empty")
    for number, state in saved["state"].items():  # a weight without a gradient has none
        if missing := own["state"][number].keys() - state.keys():
            raise UserError(f"optimizer_states lacks {min(missing)} of weight {number}")
        _require_like(state, own["state"][number], "optimizer_states")
    optimizer.load_state_dict(saved)
    optimizer.step()
    if schedule:
        (saved,) = content["lr_schedulers"]
        _require_like(saved, schedule.state_dict(), "lr_schedulers")
        schedule.load_state_dict(saved)
        if saved["last_epoch"] != getattr(schedule, "total_steps", None):  # else it is at its end
            schedule.step()


def _schedule(
    saved: list[dict[str, Any]], module: QCSModule, optimizer: Optimizer
) -> LRScheduler | None:
    """A new schedule as long as the saved one, if the run has one."""
    make = module.scheduler.get("schedule")
    if make is None:
        return None
    by_step = module.scheduler.get("interval") == "step"
    return make_schedule(make, optimizer, saved[0].get("total_steps", 1) if by_step else None)


def _require_like(saved: Any, own: Any, where: str) -> None:
    """Require the same kind of value as this run's own; what is empty there can be anything."""
    same = own is None
    if isinstance(own, dict):
        same = isinstance(saved, dict)
        for key, value in saved.items() if same else ():
            _require_like(value, own.get(key), f"{where}.{key}")
    elif isinstance(own, (list, tuple)):
        same = isinstance(saved, (list, tuple)) and len(saved) == len(own)
        for value, one in zip(saved, own, strict=True) if same else ():
            _require_like(value, one, where)
    elif isinstance(own, (bool, str)):
        same = isinstance(saved, type(own))
    elif isinstance(saved, Tensor) and not same:
        shape = own.shape if isinstance(own, Tensor) else ()
        same = is_plain(saved) and saved.shape == shape and not saved.isnan().any()
    elif isinstance(own, int):
        same = isinstance(saved, (int, float)) and -1 <= saved <= MOST
    elif not same:
        same = saved is None or isinstance(saved, (int, float))
    if not same:
        raise UserError(f"{where} holds what this run would not write")
