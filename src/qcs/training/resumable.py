"""Whether the state in a checkpoint fits the run that is to go on from it.

A file that anyone may have written can hold anything in the place of a loop's counts or of an
optimiser's averages. Lightning would put it into its objects without a look, when the run's folder
has been written to, and fail there or steps later.
"""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.migration import migrate_checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qcs.checkpoints.load import require_fit
from qcs.checkpoints.reading import is_plain
from qcs.config.bounds import MOST
from qcs.config.errors import UserError
from qcs.training.module import QCSModule
from qcs.training.schedules import make_schedule


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
