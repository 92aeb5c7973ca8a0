"""Groups are mixed whole, images and targets alike."""

from types import SimpleNamespace

import pytest
import torch

from qcs.config.errors import UserError
from qcs.training.mixup import CutMix, Mixup

NAMES = ("red", "green", "blue")


def mixed(
    batch: dict, number: int = 3, seed: int = 0, epoch: int = 1, alpha: float = 1.0, by=Mixup
) -> dict:
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=0)
    module = SimpleNamespace(seed=seed, class_names=NAMES, device=torch.device("cpu"))
    batch = dict(batch)
    by(alpha).on_train_batch_start(trainer, module, batch, number)
    return batch


def batch() -> dict:
    """Eight quadruplets whose images are of the colour of their class."""
    labels = torch.randint(3, (8, 2)).repeat_interleave(2, 1)
    pixels = torch.eye(3)[labels][..., None, None].expand(8, 4, 3, 5, 5)
    return {"images": pixels, "labels": labels}


@pytest.mark.parametrize("by", [Mixup, CutMix])
def test_an_images_colours_are_its_targets(by):
    given = batch()
    found = mixed(given, by=by)
    colours = found["images"].mean((-2, -1))
    assert torch.allclose(colours, found["targets"], atol=1e-6)
    assert torch.equal(colours.amax(-1) >= 0.5, torch.ones(8, 4, dtype=torch.bool))
    assert torch.equal(found["targets"].gather(-1, given["labels"][..., None])[..., 0] >= 0.5,
                       torch.ones(8, 4, dtype=torch.bool))  # fmt: skip
    assert (found["targets"].amax(-1) < 1).any(), "something is mixed"
    assert torch.equal(found["labels"], given["labels"])


def test_what_was_of_one_class_is_of_one_mixture():
    targets = mixed(batch())["targets"]
    assert torch.equal(targets[:, 0], targets[:, 1]) and torch.equal(targets[:, 2], targets[:, 3])


def test_soft_targets_are_mixed_as_they_are():
    given = batch() | {"targets": torch.softmax(torch.randn(8, 4, 3), -1)}
    found = mixed(given)
    share = found["images"].mean((-2, -1)).gather(-1, given["labels"][..., None]).amin()
    own = mixed(batch() | {"targets": torch.zeros(8, 4, 3)})["targets"]
    assert torch.equal(own, torch.zeros(8, 4, 3))
    assert torch.allclose(found["targets"].sum(-1), torch.ones(8, 4)) and share >= 0.5
    assert not torch.equal(found["targets"], given["targets"])


def test_a_box_of_another_group_is_pasted():
    """Each pixel is of one group, and all groups and roles have the same box."""
    number = torch.arange(8.0).reshape(8, 1, 1, 1, 1)
    given = batch() | {"images": number.expand(8, 4, 3, 20, 30)}
    boxes = []
    for step in range(40):
        changed = (mixed(given, number=step, by=CutMix)["images"] != number).flatten(0, 2)
        box, moved = changed.any(0), changed.flatten(1).any(1)
        assert torch.equal(changed[moved], box.expand(int(moved.sum()), -1, -1))
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns) and box.float().mean() <= 0.5
        boxes.append((int(rows.sum()), int(columns.sum())))
    assert len(set(boxes)) > 20, "of all sizes"
    assert all(high <= 15 and wide <= 22 for high, wide in boxes), "half, in the proportions"


@pytest.mark.parametrize("by", [Mixup, CutMix])
def test_a_resumed_run_mixes_alike_and_no_two_batches_do(by):
    given = batch() | {"images": torch.rand(8, 4, 3, 20, 20)}
    first = mixed(given, by=by)["images"]
    assert torch.equal(first, mixed(given, by=by)["images"])
    for other in ({"number": 4}, {"seed": 1}, {"epoch": 2}):
        assert not torch.equal(first, mixed(given, **other, by=by)["images"])


@pytest.mark.parametrize("by", [Mixup, CutMix])
def test_images_of_several_groups_are_refused(by):
    told = f"callbacks.{by.__name__.lower()} needs loader.groups_per_image=1"
    with pytest.raises(UserError, match=told):
        mixed(batch() | {"groups": torch.zeros(16, 4)}, by=by)
