"""Schedules of few steps, and how many steps a run has."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau

from qcs.config.errors import UserError
from qcs.config.options import instantiate
from qcs.training.schedules import make_schedule, one_cycle, total_steps


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def rates(schedule, steps: int) -> list[float]:
    """The rate of each step; the schedule moves after the last one as well."""
    optimizer, found = sgd(), []
    moved = make_schedule(schedule, optimizer, steps)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        moved.step()
    return found


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5])
def test_one_cycle_has_any_number_of_steps(share):
    for steps in range(1, 31):
        found = rates(partial(one_cycle, max_lr=0.1, pct_start=share), steps)
        assert all(0 < rate <= 0.1 + 1e-9 for rate in found), (steps, found)
        assert max(found) > 0.04
        if not (steps == 1 or share == 0 or math.isclose(share * steps, 1)):
            torchs = partial(OneCycleLR, max_lr=0.1, pct_start=share, cycle_momentum=False)
            assert found == rates(torchs, steps)


def test_other_schedules_move_by_steps_too():
    assert rates(partial(ExponentialLR, gamma=0.5), 3) == pytest.approx([0.1, 0.05, 0.025])


def trainer(batches, max_epochs=9, max_steps=-1):
    loop = SimpleNamespace(setup_data=lambda: None)
    return SimpleNamespace(
        fit_loop=loop, num_training_batches=batches, max_epochs=max_epochs, max_steps=max_steps
    )


@pytest.mark.parametrize(
    "asked,accumulate,steps",
    [
        (trainer(10), 1, 90),
        (trainer(10), 4, 27),
        (trainer(10, max_steps=8), 2, 8),
        (trainer(10, max_steps=800), 2, 45),
        (trainer(10, max_epochs=-1, max_steps=8), 2, 8),
        (trainer(10, max_epochs=-1), 1, math.inf),
        (trainer(10, max_epochs=0), 1, 0),
        (trainer(0, max_epochs=-1), 1, 0),
        (trainer(math.inf, max_steps=5), 1, 5),
    ],
)
def test_steps_of_a_run(asked, accumulate, steps):
    assert total_steps(asked, accumulate) == steps


@pytest.mark.parametrize(
    "schedule,steps,sentence",
    [
        (partial(one_cycle, max_lr=0.1), math.inf, "set trainer.max_epochs or trainer.max_steps"),
        (partial(one_cycle, max_lr=0.1, pct_start=1.5), 9, "pct_start=1.5 must be from 0 to below"),
        (partial(OneCycleLR, max_lr=0.1, pct_start=0.1), 10, "cannot be made for 10 steps"),
        (partial(OneCycleLR, max_lr=0.1), None, "cannot be made"),
        (ReduceLROnPlateau, None, "moves by a metric"),
    ],
)
def test_what_cannot_be_made_is_refused_before_training(schedule, steps, sentence):
    with pytest.raises(UserError, match=sentence):
        make_schedule(schedule, sgd(), steps)


def test_a_schedule_of_a_config_is_named():
    node = {"_target_": "qcs.training.schedules.one_cycle", "_partial_": True, "max_lr": 0.1}
    with pytest.raises(UserError, match="schedule=one_cycle ends with the run"):
        make_schedule(instantiate(node), sgd(), math.inf)
