"""POSTER++: numbers of the authors' code, the frozen landmark network, and what it combines with.

The numbers are in tests/fixtures/poster (its README gives the tolerances), their recipe is that of
tests/fixtures/parity.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qcs.models import IR, QCSNetwork
from qcs.official import from_official
from test_parity import recipe

POSTER = Path(__file__).parent / "fixtures" / "poster"
sys.modules.setdefault("recipe", recipe)  # poster_fill imports it
spec = importlib.util.spec_from_file_location("poster_fill", POSTER / "poster_fill.py")
poster_fill = importlib.util.module_from_spec(spec)
spec.loader.exec_module(poster_fill)

LABELS = torch.tensor([0, 3, 5])
DISCARDED = "face_landback.output_layer"  # runs there, its result is thrown away: not in ours


def listed(name: str) -> dict:
    return json.loads((POSTER / "keys" / f"{name}.json").read_text())


def official(name: str) -> dict[str, torch.Tensor]:
    """The authors' state dict, with the index that their model builds left at 0."""
    values = ((k, shape, poster_fill.fill(k, tuple(shape))) for k, shape, _ in listed(name)["keys"])
    return {
        k: torch.zeros((), dtype=torch.int64).expand(shape) if v is None else torch.from_numpy(v)
        for k, shape, v in values
    }


def build(name: str) -> tuple[QCSNetwork, dict[str, str]]:
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
    network, names = build(name)
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
