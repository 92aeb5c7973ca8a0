"""The landmark branch of POSTER++ beside the numbers: sizes, roles, speed, training, export."""

import copy
import logging

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from test_cpu_kernels import LABELS, images
from test_options import config
from test_sam import fit
from torch import nn
from torch.nn import functional as F

from conftest import tiny_network
from qcs.checkpoints import recipe
from qcs.config.errors import UserError
from qcs.models import IR, MobileFaceNet, QCSNetwork, cpu_kernels
from qcs.models.cpu_kernels import speed_up
from qcs.models.landmarks import LandmarkAttention, position_bias
from qcs.training import build
from qcs.training.losses import QCSLoss

KEY = "model.base.landmarks.weights"
TINY = {"base": {"landmarks": {"head_size": 8, "drop_path": 0.0}}}


def step(network: QCSNetwork, faces: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a training step."""
    network.train().zero_grad()
    loss = QCSLoss()(network.compare(faces), LABELS[:, : network.roles])["loss"]
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    found |= {name: b.clone() for name, b in network.named_buffers()}
    return found | {"loss": loss.detach()}


def test_the_bias_is_the_tables_row_of_each_offset():
    """Against the index of Swin, written out; no buffer holds it, so nothing can average it."""
    side, heads = 3, 2
    table = torch.randn((2 * side - 1) ** 2, heads)
    found = position_bias(table, side)
    for query in range(side**2):
        for key in range(side**2):
            y, x = (a - b + side - 1 for a, b in zip(divmod(query, side), divmod(key, side)))  # noqa: B905
            row = y * (2 * side - 1) + x
            assert torch.equal(found[:, query, key], table[row])
    assert not list(LandmarkAttention(8, side, 4).buffers())


def test_attention_is_the_formula_written_out():
    torch.manual_seed(0)
    block = LandmarkAttention(8, 3, head_size=4, init_scale=1.0).double()
    image, landmarks = torch.randn(2, 2, 8, 3, 3, dtype=torch.float64)
    u = F.layer_norm(image.flatten(2).mT, (8,), block.norm1.weight, block.norm1.bias, 1e-5)
    k, v = F.linear(u, block.kv.weight, block.kv.bias).split(8, dim=-1)
    q, heads = landmarks.flatten(2).mT, []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].mT * 4**-0.5
        scores = scores + position_bias(block.position, 3)[head]
        heads.append(scores.softmax(-1) @ v[..., part])
    y = u + block.gamma1 * block.proj(torch.cat(heads, dim=-1))
    z = y + block.gamma2 * block.mlp(block.norm2(y))
    torch.testing.assert_close(block(image, landmarks), z.mT.unflatten(2, (3, 3)))


@pytest.mark.parametrize("roles", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [{"roles": "together"}, {"channels_last": True, "roles": "together", "cpu_kernels": True}],
    ids=["together", "all"],
)
def test_a_fast_step_is_the_one_of_the_plain_network(options, roles):
    """And every parameter but the landmark network's gets a gradient, with any number of roles."""
    plain = tiny_network(roles=roles, **TINY).double()
    fast = speed_up(copy.deepcopy(plain), **options)
    expected, found = step(plain, images(roles)), step(fast, images(roles))
    trained = {n for n, _ in plain.named_parameters() if "landmarks.net." not in n}
    assert {n for n, p in plain.named_parameters() if p.grad is not None} == trained
    assert {n for n, p in plain.named_parameters() if p.requires_grad} == trained
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-10, rtol=1e-8, msg=name)
    counts = [b for n, b in fast.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and all(count == roles for count in counts)
    assert any("landmarks.net" in n for n, _ in fast.named_buffers())


def test_compiled_training_is_whole_graphs(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(cpu_kernels, "require_compiler", lambda why: None)
    base = speed_up(tiny_network(**TINY), compiled=True).base
    assert base.landmarks in compiled and base.landmarks.net in compiled
    blocks = torch.compile(base.landmarks, backend="aot_eager", fullgraph=True)
    levels, maps = [torch.randn(2, c, 2, 2) for c in (8, 16)], [torch.randn(2, 128, 2, 2)]
    for a, b in zip(blocks(levels, maps), base.landmarks(levels, maps), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "stem_stride,sides,maps", [(1, [16, 8, 4], [0, 1, 2]), (2, [8, 4, 4], [0, 1, 1])]
)
def test_smaller_images(stem_stride, sides, maps):
    """Each level takes the landmark map of its size; channels are brought to the level's."""
    network = QCSNetwork(
        IR((1, 1, 1), (32, 64, 128), stem_stride),
        3,
        roles=1,
        input_size=64,
        embed_dim=32,
        grid=4,
        num_heads=2,
        base={"landmarks": {}},
    )
    landmarks = network.base.landmarks
    assert network.base.pyramid.sides == sides and landmarks.sources == maps
    assert [block.side for block in landmarks.attention] == sides
    assert [block.drop_path.drop_prob for block in landmarks.attention] == [0, 0.125, 0.25]
    found = step(network, torch.randn(3, 1, 3, 64, 64))
    assert found["loss"].isfinite()
    assert network.eval()(torch.randn(2, 3, 128, 128)).shape == (2, 3)


def test_a_level_of_equal_channels_needs_no_convolution():
    network = tiny_network(backbone=IR((1, 1), (64, 128), 2), **{"base": {"landmarks": {}}})
    kinds = [type(x) for x in network.base.landmarks.lateral]
    assert kinds == [nn.Conv2d, nn.Identity]  # both levels take 128 channels, of 2x2 pixels


def test_what_lies_behind_the_last_landmark_map_is_left_out():
    net = tiny_network(**TINY).base.landmarks.net
    assert isinstance(net.conv2, nn.Identity) and isinstance(net.blocks[12], nn.Identity)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "options,sentence",
    [
        (
            {"backbone": IR((1,) * 5, (8,) * 5, 2), "grid": 1, "input_size": 64},
            "level 3 of the pyramid is 2x2 pixels, the landmark network's maps at model.input_size"
            "=64 are .32, 16, 8, 4.: change model.input_size, model.grid or",
        ),
        (
            {"base": {"landmarks": {}}},
            "model.base.landmarks.head_size=32 does not divide the 8 cha",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_network(**TINY | options)


def batch(roles: int) -> dict[str, torch.Tensor]:
    return {"images": images(roles, torch.float32), "labels": LABELS[:, :roles]}


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_moves_statistics_but_no_weight_of_the_landmark_network(averaged, tmp_path):
    """Through SAM, weight decay and clipping; weight averaging alone rounds what stays the same."""
    network = tiny_network(roles=1, **TINY)
    before = copy.deepcopy(network.base.landmarks.state_dict())
    decayed = lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)  # noqa: E731
    ema = {"callbacks": [EMAWeightAveraging(decay=0.9999)] if averaged else []}
    options = {"optimizer": decayed, "gradient_clip_norm": 1.0, "trainer": ema}
    fit(network, [batch(1)] * 3, tmp_path, **options)
    for name, value in network.base.landmarks.state_dict().items():
        statistic = name.rpartition(".")[2].startswith(("running", "num_batches"))
        if name.startswith("net.") and not statistic:
            allowed = {"rtol": 1e-6 * averaged, "atol": 0}
            torch.testing.assert_close(value, before[name], **allowed, msg=name)
        else:
            assert not torch.equal(value, before[name]), name


def test_mixed_precision():
    with torch.autocast("cpu", torch.bfloat16):
        found = step(speed_up(tiny_network(**TINY), roles="together"), images(4, torch.float32))
    assert all(value.isfinite().all() for value in found.values())
    plain = step(tiny_network(**TINY), images(4, torch.float32))
    assert found["loss"].item() == pytest.approx(plain["loss"].item(), abs=0.1)


def test_a_run_starts_from_a_file_and_its_checkpoint_does_without(faces, tmp_path, caplog):
    torch.manual_seed(3)
    theirs = MobileFaceNet((2, 3))
    torch.save(theirs.state_dict(), tmp_path / "face.pth")
    faces.to_csv(faces.root / "table.csv")
    data = ["dataset=csv", f"dataset.path={faces.root / 'table.csv'}", "loader.num_workers=0"]
    given = config(tmp_path, *data, "model=poster", f"{KEY}={tmp_path / 'face.pth'}")
    run = build.module(given, build.datamodule(given))
    mine = run.network.base.landmarks.net.state_dict()
    assert all(torch.equal(mine[k], v) for k, v in theirs.state_dict().items())
    assert str(tmp_path / "face.pth") not in str(run.recipe["model"])
    (tmp_path / "face.pth").unlink()
    recipe.network(run.recipe).load_state_dict(run.network.state_dict())
    with pytest.raises(UserError, match=f"no file at {KEY}="):
        build.module(given, build.datamodule(given))
    with caplog.at_level(logging.WARNING):
        given = config(tmp_path, *data, "model=poster")
        build.module(given, build.datamodule(given))
    assert f"{KEY}=null" in caplog.text


def test_quadruplets_on_poster_from_the_command_line(tmp_path):
    parts = config(tmp_path, "model=qcs", "model.base.landmarks={drop_path: 0.1}")
    network = build.network(parts, range(7))
    assert network.roles == 4 and network.cross is not None
    assert network.base.landmarks.attention[2].drop_path.drop_prob == pytest.approx(0.1)
    with pytest.raises(UserError, match="model.base.landmarks.rate is not an option"):
        config(tmp_path, "model=poster", "+model.base.landmarks.rate=1")


@pytest.mark.slow
def test_an_export_answers_as_the_network(tmp_path):
    pytest.importorskip("onnxscript")
    from test_export import RECIPE, TRANSFORM

    from qcs.checkpoints.load import OnnxNetwork
    from qcs.checkpoints.onnx import open_export
    from qcs.checkpoints.onnx_export import Exported, metadata, to_onnx

    model = Exported(tiny_network(**TINY).eval(), TRANSFORM, False).eval()
    to_onnx(model, tmp_path / "model.onnx", metadata(model, RECIPE))
    network = OnnxNetwork(open_export(tmp_path / "model.onnx"))
    for number in (1, 3):
        faces = torch.randn(number, 3, 16, 16)
        torch.testing.assert_close(network(faces), model(faces), atol=1e-5, rtol=1e-5)
