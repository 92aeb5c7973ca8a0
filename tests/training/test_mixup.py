"""Groups are mixed whole, images and targets alike."""

from types import SimpleNamespace

import pytest
import torch

from qcs.config.errors import UserError
from qcs.training.mixup import Mixup

NAMES = ("red", "green", "blue")


def mixed(batch: dict, number: int = 3, seed: int = 0, epoch: int = 1, alpha: float = 1.0) -> dict:
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=0)
    module = SimpleNamespace(seed=seed, class_names=NAMES, device=torch.device("cpu"))
    batch = dict(batch)
    Mixup(alpha).on_train_batch_start(trainer, module, batch, number)
    return batch


def batch() -> dict:
    """Eight quadruplets whose images are of the colour of their class."""
    labels = torch.randint(3, (8, 2)).repeat_interleave(2, 1)
    pixels = torch.eye(3)[labels][..., None, None].expand(8, 4, 3, 5, 5)
    return {"images": pixels, "labels": labels}


def test_an_images_colours_are_its_targets():
    given = batch()
    found = mixed(given)
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


def test_a_resumed_run_mixes_alike_and_no_two_batches_do():
    given = batch()
    first = mixed(given)["images"]
    assert torch.equal(first, mixed(given)["images"])
    for other in ({"number": 4}, {"seed": 1}, {"epoch": 2}):
        assert not torch.equal(first, mixed(given, **other)["images"])


def test_images_of_several_groups_are_refused():
    with pytest.raises(UserError, match="loader.groups_per_image=1"):
        mixed(batch() | {"groups": torch.zeros(16, 4)})
