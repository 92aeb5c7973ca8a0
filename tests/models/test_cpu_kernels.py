"""The fast paths compute what the plain ones do."""

import copy
import resource
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from test_options import config
from test_train import FORKS
from timm.models.vision_transformer import Block
from torch import nn

from conftest import tiny_network
from qcs.models import QCSNetwork, cpu_kernels
from qcs.models.cpu_kernels import ConvolutionLinear, VectorPReLU, speed_up
from qcs.training import build
from qcs.training.losses import QCSLoss

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


def _megabytes_kept() -> float:
    """By how much this process is larger after a tensor of 64 MB was made and freed."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    before = resident()
    tensor = torch.empty(2**24).fill_(1.0)
    del tensor
    return resident() - before


def _hold_memory() -> None:
    cpu_kernels.keep_freed_memory(False)
    assert _megabytes_kept() < 32
    cpu_kernels.keep_freed_memory()
    assert _megabytes_kept() > 32


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_that_is_held_stays_with_the_process():
    """In a process of its own, whose memory has no room that other tests have freed."""
    if not hasattr(cpu_kernels.ctypes.CDLL(None), "mallopt"):
        return cpu_kernels.keep_freed_memory()  # no effect, no error
    process = FORKS.Process(target=_hold_memory)
    process.start()
    process.join()
    assert process.exitcode == 0


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


def test_a_checkpoint_fits_both_ways():
    plain, fast = tiny_network(), speed_up(tiny_network(), **ALL)
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == list(fast.state_dict())


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
