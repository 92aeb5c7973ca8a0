"""What a run prints: a line now and then, and a short progress bar."""

import logging
from types import SimpleNamespace

import pytest
import torch

from qcs.config.errors import UserError
from qcs.training.callbacks import DropCross, EpochLog, ProgressBar
from qcs.training.losses import QCSLoss

RANK_ZERO = "lightning.pytorch.utilities.rank_zero"


def trainer(done: int, max_epochs: int = 4, max_steps: int = -1, batches: int = 100):
    return SimpleNamespace(
        fit_loop=SimpleNamespace(total_batch_idx=done - 1),
        global_step=done // 2,
        world_size=2,
        current_epoch=done // 100,
        max_epochs=max_epochs,
        max_steps=max_steps,
        num_training_batches=batches,
        callback_metrics={"train/loss_step": torch.tensor(1.25)},
    )


@pytest.fixture
def clock(monkeypatch):
    times = iter(range(0, 10_000, 10))  # ten seconds between two looks
    monkeypatch.setattr("qcs.training.callbacks.time.monotonic", lambda: float(next(times)))


def lines(caplog, *trainers) -> list[str]:
    caplog.set_level(logging.INFO)
    log, batch = EpochLog(), {"images": torch.zeros(8, 4, 1)}
    log.on_train_start(trainers[0], None)
    for number, at in enumerate(trainers):
        log.on_train_batch_end(at, None, None, batch, number)
    return [record.message for record in caplog.records]


def test_a_line_every_half_minute(clock, caplog):
    found = lines(caplog, *(trainer(n) for n in range(101, 108)))
    assert found == [
        "epoch 2/4, batch 3/100, train/loss 1.2500, 6 images/s, 1 h 14 min left",
        "epoch 2/4, batch 6/100, train/loss 1.2500, 6 images/s, 58 min 48 s left",
    ]


def test_the_end_may_be_unknown_or_counted_in_steps(clock, caplog):
    assert "left" not in lines(caplog, *[trainer(n, -1) for n in range(101, 106)])[-1]
    steps = lines(caplog, *[trainer(n, -1, max_steps=100) for n in range(101, 106)])[-1]
    assert steps.startswith("epoch 2, batch 3/100") and "24 min 44 s left" in steps


def test_an_epoch_without_validation_shows_none(clock, caplog):
    """Lightning keeps the values of the last validation."""
    caplog.set_level(logging.INFO)
    log = EpochLog()
    log.on_train_start(trainer(0), None)
    for epoch, validated in ((0, True), (1, False)):
        at = trainer(0)
        at.current_epoch = epoch
        at.callback_metrics = {"train/loss_epoch": torch.tensor(1.0), "val/acc": torch.tensor(0.5)}
        if validated:
            log.on_validation_end(at, None)
        log.on_train_epoch_end(at, None)
    first, second = (record.message for record in caplog.records)
    assert "val/acc 0.5000" in first and "train/loss 1.0000" in second and "val" not in second


def test_a_terminal_has_its_bar(clock, caplog, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert lines(caplog, *(trainer(n) for n in range(101, 108))) == []


def test_the_bar_fits_a_terminal(monkeypatch):
    bar = ProgressBar()
    bar._trainer = trainer(101)
    many = {"train/loss_step": 1.0, "train/acc_step": 0.5, "val/acc": 0.5, "val/f1": 0.5}
    monkeypatch.setattr(ProgressBar.__mro__[1], "get_metrics", lambda *_: many | {"v_num": "csv"})
    assert bar.get_metrics(None, None) == {"loss": 1.0}
    assert bar._get_train_description(0) == "Epoch 1/4"


@pytest.mark.parametrize("epoch,weight", [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_the_cross_half_is_dropped_in_the_last_epochs(epoch, weight):
    """The first batch that is seen may be in the midst of an epoch, of a resumed run."""
    module = SimpleNamespace(loss=QCSLoss())
    DropCross(after=0.75).on_train_batch_start(trainer(100 * epoch + 7), module, {}, 7)
    assert module.loss.cross_weight == weight
    for loss, epochs in ((object(), 4), (QCSLoss(), -1)):
        with pytest.raises(UserError, match="cross_weight"):
            module = SimpleNamespace(loss=loss)
            DropCross().on_train_batch_start(trainer(1, max_epochs=epochs), module, {}, 0)
