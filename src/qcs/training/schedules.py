"""Schedules of the learning rate for any number of steps, and how many steps a run has."""

import math
from collections.abc import Callable
from inspect import signature

from lightning import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from qcs.config.errors import UserError

SHORT = 1e-6  # of a step: how long a warm-up is that has no room for one


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    max_lr: float,
    pct_start: float = 0.1,
    cycle_momentum: bool = False,
) -> OneCycleLR:
    """Make torch's OneCycleLR for any number of steps.

    Torch divides by zero where the warm-up is exactly one step long (10 steps at 0.1), and gives
    the only step of a run the least rate. Here such a warm-up is left out: the first step has the
    highest rate.

    Args:
        optimizer: whose rate moves.
        total_steps: of the run, 1 or more.
        max_lr: the highest rate.
        pct_start: share of the steps that the warm-up takes, from 0 to below 1.
        cycle_momentum: let the momentum move the other way.

    Raises:
        UserError: `pct_start` is out of range.
    """
    if not 0 <= pct_start < 1:
        raise UserError(f"scheduler.schedule.pct_start={pct_start} must be from 0 to below 1")
    steps = max(total_steps, 2)
    if math.isclose(pct_start * steps, 1) or total_steps == 1:
        pct_start = (1 - SHORT) / steps
    return OneCycleLR(
        optimizer, max_lr, steps, pct_start=float(pct_start), cycle_momentum=cycle_momentum
    )


def steps_of(trainer: Trainer, accumulate: int) -> int | float:
    """Optimiser steps of a whole run, infinity where only something else ends it.

    Args:
        trainer: with its loaders.
        accumulate: batches of a step; an epoch's last step may have fewer.
    """
    trainer.fit_loop.setup_data()
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    batches = trainer.num_training_batches
    # No batch is no step, in however many epochs.
    if batches != math.inf:
        batches = math.ceil(batches / accumulate)
    steps = batches * epochs if batches and epochs else 0
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def make(
    schedule: Callable[..., LRScheduler], optimizer: Optimizer, steps: int | float | None
) -> LRScheduler:
    """Make a schedule, with `total_steps` where it takes them.

    Args:
        schedule: of an optimiser.
        optimizer: whose rate moves.
        steps: of the run; None for a schedule of epochs.

    Raises:
        UserError: it cannot be made, its end is not known, or it moves by a metric.
    """
    options, name = {}, getattr(getattr(schedule, "func", schedule), "__name__", str(schedule))
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
