"""The fast paths compute what the plain ones do."""

import copy

import pytest
import timm
import torch
from torch import nn

from conftest import tiny_network
from qcs import build
from qcs.losses import QCSLoss
from qcs.models import QCSNetwork
from qcs.models.role_norm import RoleBatchNorm2d, set_roles
from qcs.models.speed import ConvolutionLinear, speed_up
from qcs.sam import frozen_statistics
from test_config import config

ALL = {"channels_last": True, "roles": "together", "cpu_kernels": True}
LABELS = torch.tensor([[0, 0, 2, 2], [1, 1, 0, 0], [2, 2, 1, 1]])


def step(network: QCSNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a training step."""
    network.train().zero_grad()
    loss = QCSLoss()(network.compare(images), LABELS[:, : network.roles])["loss"]
    loss.backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    found |= {name: b.clone() for name, b in network.named_buffers()}
    return found | {"loss": loss.detach()}


def images(roles: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, roles, 3, 16, 16, dtype=dtype, generator=generator)


@pytest.mark.parametrize("roles", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [{"roles": "together"}, {"roles": "together", "channels_last": True}, ALL],
    ids=["joint", "channels_last", "all"],
)
def test_a_step_is_the_one_of_the_plain_network(options, roles):
    plain = tiny_network(roles=roles).double()
    fast = speed_up(copy.deepcopy(plain), **options)
    expected, found = step(plain, images(roles)), step(fast, images(roles))
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-10, rtol=1e-8, msg=name)
    counts = [b for name, b in fast.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and all(count == roles for count in counts)


def test_fp32_and_a_second_step():
    """In fp32 linear layers are convolutions; the statistics go on from the first step."""
    plain = tiny_network()
    fast = speed_up(copy.deepcopy(plain), **ALL)
    assert any(isinstance(m, ConvolutionLinear) for m in fast.modules())
    for _ in range(2):
        expected, found = (step(n, images(4, torch.float32)) for n in (plain, fast))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-3, msg=name)
    plain.eval(), fast.eval()
    faces = images(4, torch.float32)[:, 0]
    torch.testing.assert_close(fast(faces), plain(faces), atol=1e-5, rtol=1e-4)


def test_mixing_the_roles_would_show():
    """The test above can fail: joint statistics give another loss."""
    plain = tiny_network().double()
    mixed = speed_up(copy.deepcopy(plain), roles="together")
    for module in mixed.modules():
        if isinstance(module, RoleBatchNorm2d):
            module.__class__ = nn.BatchNorm2d
    mixed.base.roles = "apart"
    joined = copy.deepcopy(mixed)
    joined.base.compare = lambda x: tuple(
        out.unflatten(0, x.shape[:2]) for out in joined.base(x.flatten(0, 1))
    )
    assert not torch.allclose(step(plain, images(4))["loss"], step(joined, images(4))["loss"])


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


def test_a_checkpoint_fits_both_ways():
    plain, fast = tiny_network(), speed_up(tiny_network(), **ALL)
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == list(fast.state_dict())


def test_mixed_precision_trains_through_the_norm():
    fast = speed_up(tiny_network(), **ALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(fast, images(4, torch.float32))
    assert all(value.isfinite().all() for value in found.values())
    plain = step(tiny_network(), images(4, torch.float32))
    assert found["loss"].item() == pytest.approx(plain["loss"].item(), abs=0.05)


@pytest.mark.parametrize("choice", ["default", "exact", "fast"])
def test_a_run_is_built_with_its_speed(choice, faces, tmp_path):
    """The options reach the network, the optimiser and the trainer."""
    faces.to_csv(faces.root / "table.csv")
    data = ["dataset=csv", f"dataset.path={faces.root / 'table.csv'}", "loader.num_workers=0"]
    given = config(tmp_path, *data, f"speed={choice}", "scheduler=exponential")
    module = build.module(given, build.datamodule(given))
    fast = choice != "default"
    assert (module.network.base.roles == "together") == fast
    weight = module.network.base.backbone.stage1[0].residual[1].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == fast
    assert bool(module.configure_optimizers()[0][0].defaults["fused"]) == fast
    assert (given["trainer"]["precision"] == "bf16-mixed") == (choice == "fast")
