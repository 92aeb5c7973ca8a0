"""POSTER++: numbers of the authors' code, the frozen landmark network, and what it combines with.

The numbers are in tests/fixtures/poster (its README gives the tolerances), their recipe is that of
tests/fixtures/parity.
"""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parity import recipe
from torch.nn import functional as F

from conftest import sam_steps
from qcs.checkpoints.load import load_checkpoint
from qcs.checkpoints.official import DATASETS, convert
from qcs.checkpoints.official_keys import from_official
from qcs.checkpoints.pretrained import load_backbone
from qcs.config.errors import UserError
from qcs.models import IR, MobileFaceNet, QCSNetwork

POSTER = Path(__file__).parents[1] / "fixtures" / "poster"
sys.modules.setdefault("recipe", recipe)  # poster_fill imports it
spec = importlib.util.spec_from_file_location("poster_fill", POSTER / "poster_fill.py")
poster_fill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(poster_fill)

LABELS = torch.tensor([0, 3, 5])
DISCARDED = "face_landback.output_layer"  # runs there, its result is thrown away: not in ours


def listed(name: str) -> dict:
    return json.loads((POSTER / "keys" / f"{name}.json").read_text())


@functools.cache
def official(name: str) -> dict[str, torch.Tensor]:
    """The authors' state dict, with the index that their model builds left at 0."""
    values = ((k, shape, poster_fill.fill(k, tuple(shape))) for k, shape, _ in listed(name)["keys"])
    return {
        k: torch.zeros((), dtype=torch.int64).expand(shape) if v is None else torch.from_numpy(v)
        for k, shape, v in values
    }


def filled(name: str) -> tuple[QCSNetwork, dict[str, str]]:
    """The network with the recipe's weights and no drop path; our names -> the official ones."""
    weights, report = from_official(official(name))
    base = {"landmarks": {"drop_path": 0.0}}
    network = QCSNetwork(IR(), num_classes=int(name[-1]), roles=1, base=base)
    network.load_state_dict(weights)
    return network, {ours: key for key, ours in report.mapped.items()}


def watched(network: QCSNetwork) -> dict[str, torch.Tensor]:
    """What modules give at the next forward, by the authors' names of stages."""
    found: dict[str, torch.Tensor] = {}
    base = network.base

    def keep(module, *names):
        def hook(_, inputs, output):
            outputs = output if isinstance(output, list) else [output] * len(names)
            found.update(zip(names, outputs, strict=True))

        module.register_forward_hook(hook)

    keep(base.landmarks.net, *(f"face_landback/out{i}" for i in range(3)))
    keep(base.backbone, *(f"ir_back/out{i}" for i in range(3)))
    keep(base.landmarks.lateral[2], "last_face_conv/out0")
    for i, attention in enumerate(base.landmarks.attention, start=1):
        keep(base.pyramid.lateral[i - 1], f"conv{i}/out0")
        keep(attention.norm1, f"window{i}/out0", f"window{i}/out1")
        keep(attention.proj, f"attn{i}/out0")
        keep(attention, f"ffn{i}/out0")
        keep(base.pyramid.embed[i - 1], f"embed_{' qkv'[i]}/out0")
    for i, block in enumerate(base.encoder.blocks):
        keep(block, f"VIT.blocks.{i}/out0")
    keep(base.encoder.norm, "VIT.norm/out0")
    keep(base.encoder.head, "VIT/out0")
    gated = base.encoder.head.register_forward_pre_hook
    gated(lambda _, inputs: found.update({"VIT.se_block/out0": inputs[0]}))
    return found


def check_stages(found, golden, key):
    names = golden["stage_names"].tolist()
    assert set(names) == set(found)
    sums = [[found[k].sum().item(), found[k].norm().item()] for k in names]
    np.testing.assert_allclose(sums, golden[key], atol=1e-8, rtol=1e-10)


def check_gradients(network, names, golden, prefix, rtol):
    grads = {names[k]: p.grad.double() for k, p in network.named_parameters() if p.requires_grad}
    order = golden["all_grad_names"].tolist()
    assert sorted(order) == sorted(grads)  # no parameter that the authors' code does not train
    norms, expected = np.array([grads[k].norm() for k in order]), golden[prefix + "all_grad_l2"]
    np.testing.assert_allclose(norms, expected, rtol=rtol)
    probes = [
        torch.from_numpy(poster_fill.fill(f"{k}:probe", tuple(grads[k].shape))) for k in order
    ]
    dots = np.array([(grads[k] * p).sum() for k, p in zip(order, probes, strict=True)])
    assert np.all(np.abs(dots - golden[prefix + "all_grad_dot"]) <= rtol * expected)
    total = np.sqrt((norms**2).sum())
    np.testing.assert_allclose(total, golden[prefix + "grad_total_l2"], rtol=rtol)


def check_batch_norm(network, names, golden, prefix, atol):
    buffers = {names[k]: b for k, b in network.named_buffers()}
    for i, layer in enumerate(golden["bn_names"].tolist()):
        if layer.startswith(DISCARDED):
            continue
        mean, var = buffers[f"{layer}.running_mean"], buffers[f"{layer}.running_var"]
        np.testing.assert_allclose(mean, golden[f"{prefix}bn{i}_mean"], atol=atol, rtol=0)
        np.testing.assert_allclose(var, golden[f"{prefix}bn{i}_var"], atol=atol, rtol=0)
        assert buffers[f"{layer}.num_batches_tracked"] == golden["bn_num_batches"][i]


@pytest.mark.parametrize("name", ["poster7", "poster8"])
def test_every_official_key_is_mapped_or_dropped(name):
    keys = listed(name)
    _, report = from_official({k: torch.zeros(()) for k, _, _ in keys["keys"]})
    dropped = ("unused", "unused_buffers_never_run", "discarded_but_run_buffers")
    constants = keys["model_made_buffers"]
    assert set(report.dropped) == {k for part in dropped for k in keys[part]} | set(constants)
    assert len(report.mapped) + len(report.dropped) == len(keys["keys"])
    reasons = {k: why for k, why in report.dropped.items() if "no input reaches it" not in why}
    assert set(reasons) == {k for k in report.dropped if k.startswith(DISCARDED)} | set(constants)


@pytest.mark.parametrize("name,double", [("poster7", True), ("poster8", False)])
def test_network_reproduces_the_authors_numbers(name, double):
    dtype, prefix, atol = (
        (torch.float64, "f64_", 1e-10) if double else (torch.float32, "f32_", 1e-5)
    )
    golden = np.load(POSTER / f"golden_{name}.npz")
    network, names = filled(name)
    assert {names[k] for k, p in network.named_parameters() if not p.requires_grad} == set(
        listed(name)["frozen_used"]
    )
    network.to(dtype).eval()
    found = watched(network)
    images = torch.from_numpy(recipe.images("anchor", 3)).to(dtype)
    with torch.no_grad():
        logits = network(images)
    np.testing.assert_allclose(logits, golden[prefix + "eval_logits"], atol=atol, rtol=0)
    if double:
        check_stages(found, golden, "f64_eval_stage")
    before = {k: p.clone() for k, p in network.base.landmarks.net.named_parameters()}
    out = network.train().compare(images[:, None])
    logits = out.base_logits[:, 0]
    np.testing.assert_allclose(logits.detach(), golden[prefix + "train_logits"], atol=atol, rtol=0)
    loss = F.cross_entropy(logits, LABELS)
    np.testing.assert_allclose(loss.item(), golden[prefix + "train_loss"], atol=atol, rtol=0)
    check_batch_norm(network, names, golden, prefix, atol)
    if double:
        check_stages({k: v.detach() for k, v in found.items()}, golden, "f64_train_stage")
        loss.backward()
        check_gradients(network, names, golden, prefix, 1e-9)
        for k, p in network.base.landmarks.net.named_parameters():
            assert p.grad is None and torch.equal(p, before[k])


@pytest.mark.slow  # the loop is held by test_sam_parity.py as well
def test_three_sam_steps_reproduce_the_authors_numbers(tmp_path):
    golden = np.load(POSTER / "golden_poster7.npz")
    network, names = filled("poster7")
    frozen = {k: p.clone() for k, p in network.named_parameters() if not p.requires_grad}
    images = torch.from_numpy(recipe.images("anchor", 3)).double()
    data = {"images": images[:, None], "labels": LABELS[:, None]}
    losses, norms = sam_steps(network, data, 3, tmp_path)
    np.testing.assert_allclose(losses, golden["f64_sam_losses"].flatten(), rtol=1e-8)
    np.testing.assert_allclose(norms, golden["f64_sam_grad_norm"], rtol=1e-8)
    params = {names[k]: p.detach() for k, p in network.named_parameters()}
    chosen = [params[k] for k in golden["named_params"].tolist()]
    sums, lengths = [p.sum() for p in chosen], [p.norm() for p in chosen]
    np.testing.assert_allclose(sums, golden["f64_sam_param_sum"], atol=1e-7, rtol=0)
    np.testing.assert_allclose(lengths, golden["f64_sam_param_l2"], rtol=1e-8)
    check_statistics_after_sam(network, names, golden)
    with torch.no_grad():
        logits = network.eval()(images)
    np.testing.assert_allclose(logits, golden["f64_sam_eval_logits"], atol=1e-8, rtol=1e-8)
    for k, p in network.named_parameters():
        assert k not in frozen or (p.grad is None and torch.equal(p, frozen[k].double()))


def check_statistics_after_sam(network, names, golden):
    buffers = {names[k]: b for k, b in network.named_buffers()}
    for i, layer in enumerate(golden["bn_names"].tolist()):
        if layer.startswith(DISCARDED):
            continue
        sums = [buffers[f"{layer}.running_{s}"].sum().item() for s in ("mean", "var")]
        np.testing.assert_allclose(sums, golden["f64_sam_bn_sums"][i], atol=1e-7, rtol=1e-8)
        assert buffers[f"{layer}.num_batches_tracked"] == golden["sam_bn_num_batches"][i]


# -- files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training file of the authors, and the tensors in it."""
    path, state = tmp_path_factory.mktemp("poster") / "raf-db-model_best.pth", official("poster7")
    state = {k: v.contiguous() for k, v in state.items()}
    content = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(content | {"best_acc": torch.tensor(92.2)}, path)
    return path, state


def test_a_converted_file_gives_the_authors_logits(whole, tmp_path):
    path, state = whole
    parts = convert(path, tmp_path / "out.ckpt").recipe
    assert parts["dataset"]["name"] == "rafdb" and parts["model"]["roles"] == 1
    assert "weights" not in parts["model"]["base"]["landmarks"]
    network = load_checkpoint(tmp_path / "out.ckpt").network
    golden = np.load(POSTER / "golden_poster7.npz")
    with torch.inference_mode():
        logits = network(torch.from_numpy(recipe.images("anchor", 3)))
    np.testing.assert_allclose(logits, golden["f32_eval_logits"], atol=1e-5, rtol=0)
    lines = (tmp_path / "out.keys.txt").read_text().splitlines()
    assert {line.split(" ")[0] for line in lines} == {f"module.{k}" for k in state}
    text = "\n".join(lines)
    assert "output_layer.linear.weight dropped: the authors' code throws its result away" in text
    assert "attn1.relative_position_index dropped: a constant" in text
    net = MobileFaceNet()  # from our own checkpoint, past the backbone
    load_backbone(net, tmp_path / "out.ckpt", "landmark network")
    check_landmarks(net, state)


def test_the_data_set_is_one_that_was_published(tmp_path):
    """Eight classes are AffectNet's: there is no POSTER++ of FERPlus."""
    keys = listed("poster8")["keys"]
    torch.save({k: torch.zeros(()).expand(s) for k, s, _ in keys}, tmp_path / "eight.pth")
    parts = convert(tmp_path / "eight.pth", tmp_path / "out.ckpt").recipe
    assert parts["class_names"] == list(DATASETS["affectnet8"])
    with pytest.raises(UserError, match="has 8 classes, so it is one of affectnet8$"):
        convert(tmp_path / "eight.pth", tmp_path / "other.ckpt", "ferplus")
    keys = listed("poster7")["keys"]
    torch.save({k: torch.zeros(()).expand(s) for k, s, _ in keys}, tmp_path / "seven.pth")
    with pytest.raises(UserError, match="add --dataset rafdb or --dataset affectnet7"):
        convert(tmp_path / "seven.pth", tmp_path / "other.ckpt")
    (tmp_path / "seven.pth").rename(tmp_path / "CAER-S.pth")
    with pytest.raises(UserError, match="is of CAER-S by its name"):
        convert(tmp_path / "CAER-S.pth", tmp_path / "other.ckpt")
    torch.save({k: torch.zeros(()).expand(s) for k, s, _ in keys[:-9]}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="is not a whole model of the authors"):
        convert(tmp_path / "part.pth", tmp_path / "other.ckpt", "rafdb")


def check_landmarks(net: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    found, prefix = net.state_dict(), "base.landmarks.net."
    mapped = from_official(state)[1].mapped
    pairs = {ours.removeprefix(prefix): k for k, ours in mapped.items() if ours.startswith(prefix)}
    assert set(pairs) == set(found)
    assert all(torch.equal(found[ours], state[key]) for ours, key in pairs.items())


def test_both_parts_are_taken_from_a_whole_file(whole, caplog):
    """`backbone.weights` finds the IR-50 or the MobileFaceNet, whichever the backbone is."""
    path, state = whole
    ir, net = IR(), MobileFaceNet()
    with caplog.at_level("WARNING"):
        load_backbone(ir, path)
        load_backbone(net, path)
    assert torch.equal(ir.stem[0].weight, state["ir_back.input_layer.0.weight"])
    check_landmarks(net, state)
    load_backbone(again := MobileFaceNet(), path, "landmark network")
    check_landmarks(again, state)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_the_landmark_networks_own_files(whole, tmp_path, caplog):
    """Alone under POSTER++'s names, and under MobileFaceNet's with the head of a face network."""
    _, state = whole
    alone = {k.removeprefix("face_landback."): v for k, v in state.items() if "landback" in k}
    torch.save({"state_dict": alone}, tmp_path / "landmarks.pth.tar")
    load_backbone(net := MobileFaceNet(), tmp_path / "landmarks.pth.tar", "landmark network")
    check_landmarks(net, state)
    faces = net.state_dict() | {"linear7.conv.weight": torch.zeros(3)}
    torch.save({"net_state_dict": faces}, tmp_path / "068.ckpt")
    with caplog.at_level("INFO"):
        load_backbone(again := MobileFaceNet(), tmp_path / "068.ckpt", "landmark network")
    check_landmarks(again, state)
    line = [r.getMessage() for r in caplog.records][-1]
    assert line.startswith("model.base.landmarks.weights=") and "left out 1 of other" in line
    torch.save(IR((1,), (8,)).state_dict(), tmp_path / "ir.pth")
    with pytest.raises(UserError, match="landmarks.weights=.* fits 0 of the landmark network's"):
        load_backbone(again, tmp_path / "ir.pth", "landmark network")
