"""The fast paths compute what the plain ones do."""

import copy
import resource
from functools import partialmethod
from pathlib import Path

import pytest
import timm
import torch
from test_options import config
from timm.models.vision_transformer import Block
from torch import nn
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.inference import backends
from qcs.models import QCSNetwork, cpu_kernels
from qcs.models.cpu_kernels import ConvolutionLinear, VectorPReLU, speed_up
from qcs.models.role_batchnorm import RoleBatchNorm2d, set_roles
from qcs.training import build
from qcs.training.losses import QCSLoss
from qcs.training.sam import frozen_statistics

ALL = {"channels_last": True, "roles": "together", "cpu_kernels": True}
LABELS = torch.tensor([[0, 0, 2, 2], [1, 1, 0, 0], [2, 2, 1, 1]])


def step(network: QCSNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a training step."""
    network.train().zero_grad()
    labels = LABELS[:, : network.roles].to(images.device)
    loss = QCSLoss()(network.compare(images), labels)["loss"]
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


@pytest.mark.parametrize("options", [{}, ALL], ids=["default", "fast"])
def test_compiled_training_has_no_graph_breaks_and_computes_the_same(options, monkeypatch):
    """Every part is one graph; the compiler behind it, which needs g++, is a slow test's."""
    whole = partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", whole)
    monkeypatch.setattr(cpu_kernels, "require_compiler", lambda why: None)
    plain = tiny_network()
    fast = speed_up(copy.deepcopy(plain), **options, compiled=True)
    expected, found = (step(n, images(4, torch.float32)) for n in (plain, fast))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-3, msg=name)


def test_the_gradient_of_prelu_is_torchs():
    slopes = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    norm = VectorPReLU(3).double()
    norm.weight.data.copy_(slopes)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    x.data[0, 0, 0, 0] = 0.0
    out = torch.randn_like(x)
    found = torch.autograd.grad(norm(x), [x, norm.weight], out)
    expected = torch.autograd.grad(nn.functional.prelu(x, norm.weight), [x, norm.weight], out)
    torch.testing.assert_close(found, expected)


def test_attention_in_bf16_is_explicit_on_a_cpu_and_the_same():
    plain = Block(32, 2, qkv_bias=True).attn
    fast = copy.deepcopy(plain)
    cpu_kernels.use_cpu_kernels(nn.ModuleList([fast]))
    tokens = torch.randn(2, 5, 32)
    assert fast.fused_attn
    torch.testing.assert_close(fast(tokens), plain(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast.fused_attn
        torch.testing.assert_close(fast(tokens), plain(tokens), atol=0.02, rtol=0.05)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_that_is_held_stays_with_the_process():
    """A freed tensor of 64 MB leaves the process as large as it was, or as small."""
    if not hasattr(cpu_kernels.ctypes.CDLL(None), "mallopt"):
        return cpu_kernels.keep_freed_memory()  # no effect, no error

    def megabytes_kept() -> float:
        before = resident()
        tensor = torch.empty(2**24).fill_(1.0)
        del tensor
        return resident() - before

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    try:
        cpu_kernels.keep_freed_memory(False)
        assert megabytes_kept() < 32
        cpu_kernels.keep_freed_memory()
        assert megabytes_kept() > 32
    finally:
        cpu_kernels.keep_freed_memory(False)


class Doubled(nn.Module):
    """A base branch of which the answers are known."""

    def forward(self, images):
        assert len(images) == 4
        return images.mean((1, 2, 3))[:, None].repeat(1, 2), None, None


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_a_compiled_form_takes_any_number_of_images(number, monkeypatch):
    """Batches are filled up or cut to the size that is compiled, once."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: made.append(1) or module)
    form = backends.Compiled(Doubled(), "compiled", 4)
    faces = torch.rand(number, 3, 8, 8)
    for _ in range(2):
        torch.testing.assert_close(form(faces), faces.mean((1, 2, 3))[:, None].repeat(1, 2))
    assert made == [1]


def test_what_has_no_form_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"\.onnx write form=eager"):
        backends.in_form(nn.Identity(), "compiled", 1)
    with pytest.raises(UserError, match="none of eager, compiled"):
        backends.in_form(tiny_network(), "fast", 1)
    network = tiny_network()
    assert backends.in_form(network, "eager", 1) is network

    def absent():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(UserError, match=r"form=compiled needs a C\+\+ compiler"):
        backends.in_form(network, "compiled", 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compiled", "compiled_bf16", "compiled_int8"])
def test_a_form_answers_as_the_network(form):
    """Through the real compiler: `pytest -m slow tests/test_speed.py`, needs g++ (and torchao)."""
    network = tiny_network().eval()
    faces = images(4, torch.float32).flatten(0, 1)
    found = backends.in_form(network, form, len(faces))(faces)
    expected = network(faces)
    allowed = {"compiled": 1e-5, "compiled_bf16": 0.05, "compiled_int8": 0.15}[form]
    assert ((found - expected).square().mean().sqrt() / expected.std()).item() < allowed


@pytest.mark.slow
def test_a_step_through_the_compiler():
    plain = tiny_network()
    fast = speed_up(copy.deepcopy(plain), **ALL, compiled=True)
    expected, found = (step(n, images(4, torch.float32)) for n in (plain, fast))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: pytest -m gpu")
@pytest.mark.parametrize("options", [ALL, ALL | {"compiled": True}], ids=["fast", "compiled"])
def test_a_step_on_a_gpu(options):
    """The fast paths in float64 on CUDA, compiled in float32, against the plain network there."""
    dtype = torch.float32 if "compiled" in options else torch.float64
    plain = tiny_network().to("cuda", dtype)
    fast = speed_up(copy.deepcopy(plain), **options)
    faces, atol = images(4, dtype).cuda(), 1e-4 if "compiled" in options else 1e-9
    expected, found = step(plain, faces), step(fast, faces)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=atol * 100, msg=name)


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
    assert (module.network.base.role_batching == "together") == fast
    weight = module.network.base.backbone.stage1[0].residual[1].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == fast
    assert bool(module.configure_optimizers()[0][0].defaults["fused"]) == fast
    assert (given["trainer"]["precision"] == "bf16-mixed") == (choice == "fast")
