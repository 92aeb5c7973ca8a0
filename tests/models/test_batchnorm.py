"""BatchNorm of each role against roles that pass through the backbone one after the other."""

import copy

import pytest
import timm
import torch
from test_cpu_kernels import ALL, LABELS, images, step
from torch import nn

from conftest import tiny_network
from qcs.models import QCSNetwork
from qcs.models.batchnorm import RoleBatchNorm2d, set_roles
from qcs.models.cpu_kernels import speed_up
from qcs.training.losses import QCSLoss
from qcs.training.sam import frozen_statistics


def test_mixing_the_roles_would_show():
    """The test above can fail: joint statistics give another loss."""
    plain = tiny_network().double()
    mixed = speed_up(copy.deepcopy(plain), roles="together")
    for module in mixed.modules():
        if isinstance(module, RoleBatchNorm2d):
            module.__class__ = nn.BatchNorm2d
    mixed.base.role_batching = "apart"
    joined = copy.deepcopy(mixed)
    joined.base.compare = lambda x: tuple(
        out.unflatten(0, x.shape[:2]) for out in joined.base(x.flatten(0, 1))
    )
    assert not torch.allclose(step(plain, images(4))["loss"], step(joined, images(4))["loss"])


def test_joint_statistics_are_those_of_all_roles():
    """They are BatchNorm of the whole batch, and other numbers than the paper's."""
    plain = tiny_network().double()
    joint = speed_up(copy.deepcopy(plain), roles="joint")
    found = step(joint, images(4))
    assert not torch.allclose(step(plain, images(4))["loss"], found["loss"])
    counts = [b for name, b in joint.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and all(count == 1 for count in counts)
    stem = joint.base.backbone.stem
    mean = stem[0](images(4).flatten(0, 1)).mean((0, 2, 3))
    torch.testing.assert_close(stem[1].running_mean, 0.1 * mean)


def test_a_plain_forward_in_training_is_not_taken_by_role():
    plain = tiny_network(cross=None).double().train()
    fast = speed_up(copy.deepcopy(plain), roles="together")
    fast.compare(images(4))
    fast.load_state_dict(plain.state_dict())
    faces = images(4).flatten(0, 1)
    torch.testing.assert_close(fast(faces), plain(faces))


def test_what_cannot_be_taken_by_role_goes_one_by_one():
    """timm's BatchNormAct2d and SyncBatchNorm take a batch as a whole."""
    backbone = timm.create_model("mobilenetv3_small_050", features_only=True, out_indices=[1, 2])
    network = QCSNetwork(backbone, 3, roles=2, input_size=32, embed_dim=16, grid=2, num_heads=2)
    plain, fast = network.double(), speed_up(copy.deepcopy(network), roles="together")
    assert not set_roles(fast.base.backbone, 2)
    generator = torch.Generator().manual_seed(0)
    faces = torch.randn(3, 2, 3, 32, 32, dtype=torch.float64, generator=generator)
    expected, found = step(plain, faces), step(fast, faces)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(
        speed_up(tiny_network(), roles="together").base.backbone
    )
    assert not set_roles(synced, 4)


def test_recomputing_and_frozen_statistics_hold():
    """Gradient checkpointing runs units again, and SAM's second pass may leave statistics alone."""
    plain = speed_up(tiny_network().double(), roles="together")
    again = copy.deepcopy(plain)
    again.base.backbone.set_grad_checkpointing()
    expected = step(plain, images(4))
    again.train().zero_grad()
    loss = QCSLoss()(again.compare(images(4)), LABELS)["loss"]
    with frozen_statistics(again):
        loss.backward()
    for name, p in again.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)
    for name, b in again.named_buffers():
        torch.testing.assert_close(b, expected[name], msg=name)


def test_the_gradient_of_the_norm_is_right():
    """Against finite differences."""
    norm = RoleBatchNorm2d(3).double().train()
    norm.roles = 2
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.autograd.gradcheck(lambda x, m=layout: norm(x.to(memory_format=m)), (x,))


def test_mixed_precision_trains_through_the_norm():
    fast = speed_up(tiny_network(), **ALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(fast, images(4, torch.float32))
    assert all(value.isfinite().all() for value in found.values())
    plain = step(tiny_network(), images(4, torch.float32))
    assert found["loss"].item() == pytest.approx(plain["loss"].item(), abs=0.05)
