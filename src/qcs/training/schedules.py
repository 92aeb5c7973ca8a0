"""Schedules of the learning rate for any number of steps, and the number of steps of a run."""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, Literal

import torch
from lightning import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from typing_extensions import TypedDict

from qcs.config.errors import UserError

MANY = 100_000  # steps, in the place of their number, which is known when the run has begun
SHORTEST_WARM_UP = 1e-6  # in steps; stands for no warm-up, because torch divides by its length


class SchedulerOptions(TypedDict, total=False):
    """The keys of a config's scheduler; `interval` "step" counts optimiser steps."""

    interval: Literal["step", "epoch"]
    schedule: dict | Callable | None


class Schedule(TypedDict, total=False):
    """A schedule for `qcs.training.module.QCSModule`.

    `schedule` is a function that makes the schedule of an optimiser. With the interval "step", a
    function that takes `total_steps` is given the number of steps of the run.
    """

    interval: Literal["step", "epoch"]
    schedule: Callable[..., LRScheduler] | None


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    max_lr: float,
    pct_start: float = 0.1,
    cycle_momentum: bool = False,
) -> OneCycleLR:
    """Make torch's OneCycleLR for any number of steps.

    Torch divides by zero where the warm-up is exactly one step long (10 steps at 0.1), and it gives
    a run of a single step the lowest rate. Here such a warm-up is left out, so that the first step
    has the highest rate.

    Args:
        total_steps: number of optimiser steps of the run, 1 or more.
        max_lr: the highest learning rate.
        pct_start: share of the steps that the warm-up takes, from 0 to below 1.
        cycle_momentum: whether the momentum falls while the rate rises, and rises while it falls.

    Raises:
        UserError: `pct_start` is out of range.
    """
    if not 0 <= pct_start < 1:
        raise UserError(f"scheduler.schedule.pct_start={pct_start} must be from 0 to below 1")
    steps = max(total_steps, 2)
    if math.isclose(pct_start * steps, 1) or total_steps == 1:
        pct_start = (1 - SHORTEST_WARM_UP) / steps
    return OneCycleLR(
        optimizer, max_lr, steps, pct_start=float(pct_start), cycle_momentum=cycle_momentum
    )


def total_steps(trainer: Trainer, accumulate: int) -> int | float:
    """Count the optimiser steps of a whole run; infinity where neither epochs nor steps end it.

    Args:
        accumulate: number of batches of a step; the last step of an epoch may have fewer.
    """
    trainer.fit_loop.setup_data()
    max_epochs = trainer.max_epochs
    epochs = math.inf if max_epochs is None or max_epochs == -1 else max_epochs
    batches = trainer.num_training_batches
    if batches != math.inf:
        batches = math.ceil(batches / accumulate)
    steps = batches * epochs if batches and epochs else 0  # 0 times infinity would be NaN
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def require_long_enough(schedule: object, steps: int | float) -> None:
    """Check that a schedule from a checkpoint lasts for so many optimiser steps.

    One that has no `total_steps` has any length.

    Raises:
        UserError: the schedule ends before the run does.
    """
    total = getattr(schedule, "total_steps", None)
    if total is not None and total < steps:
        raise UserError(
            f"the run that goes on was scheduled for {total} steps and now has {steps}: "
            "keep trainer.max_epochs and the batch size, or start anew from its "
            "backbone.weights"
        )


def require_makeable(
    scheduler: Schedule, make_optimizer: Callable[..., Optimizer], trainer: Trainer
) -> None:
    """Make the schedule for an optimiser of one number, before the run has written anything.

    Raises:
        UserError: as for `make_schedule`.
    """
    if (schedule := scheduler.get("schedule")) is None:
        return
    by_step = scheduler.get("interval", "epoch") == "step"
    endless = trainer.max_epochs in (None, -1) and trainer.max_steps == -1
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    make_schedule(schedule, optimizer, (math.inf if endless else MANY) if by_step else None)


def make_schedule(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, steps: int | float | None
) -> LRScheduler:
    """Make the schedule of an optimiser.

    Args:
        schedule: a function that makes the schedule; it is given `total_steps` where it has such a
            parameter.
        steps: number of steps of the run; None for a schedule that counts epochs.

    Raises:
        UserError: the schedule cannot be made, it needs to know the end of a run that has none, or
            it depends on a metric.
    """
    options: dict[str, Any] = {}
    function = schedule if hasattr(schedule, "__name__") else getattr(schedule, "func", schedule)
    name = getattr(function, "__name__", str(schedule))
    if steps is not None and "total_steps" in signature(schedule).parameters:
        if steps == math.inf:
            raise UserError(
                f"scheduler.schedule={name} ends with the run, whose end is not known: set "
                "trainer.max_epochs or trainer.max_steps, or write scheduler=none"
            )
        options["total_steps"] = int(steps)
    try:
        made = schedule(optimizer, **options)
    except UserError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"scheduler.schedule={name} cannot be made"
            f"{'' if steps is None else f' for {steps} steps'}: {error}"
        ) from error
    if isinstance(made, ReduceLROnPlateau):
        raise UserError(
            "scheduler.schedule=ReduceLROnPlateau moves by a metric, which no schedule here is "
            "given: choose another"
        )
    return made
