"""Our network, loss, BatchNorm and SAM against numbers of the authors' code.

The numbers and the weight recipe are in tests/fixtures/parity (its README says how they were
made and gives the tolerances). The two data sets of each (variant, classes) are the same function,
so one of each pair is checked in float64 and the other in float32.
"""

import functools
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qcs.checkpoints.official_keys import from_official
from qcs.models import IR, QCSNetwork
from qcs.models.cross_similarity import cross_similarity
from qcs.training.losses import QCSLoss

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
spec = importlib.util.spec_from_file_location("recipe", PARITY / "recipe.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

LABELS = torch.tensor([[0, 0, 2, 2], [3, 3, 6, 6], [5, 5, 1, 1]])
ROLES = ("anchor", "positive", "negative", "negative2")
MODELS = sorted(p.stem for p in (PARITY / "keys").glob("*.json"))
DOUBLE = ("QCS_7cls_raf_db", "QCS_8cls_affectnet", "DCS_7cls_raf_db", "DCS_8cls_ferplus")
SINGLE = ("QCS_7cls_affectnet", "QCS_8cls_ferplus", "DCS_7cls_affectnet", "DCS_8cls_affectnet")


@functools.cache
def filled(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recipe's tensor; the eight models share most of theirs."""
    return np.asarray(recipe.fill(name, shape))


def official(name: str) -> dict[str, torch.Tensor]:
    keys = json.loads((PARITY / "keys" / f"{name}.json").read_text())["keys"]
    return {k: torch.from_numpy(filled(k, tuple(shape)).copy()) for k, shape, _ in keys}


def build(name: str) -> tuple[QCSNetwork, dict[str, str]]:
    """The network with the recipe's weights, and our parameter names -> the official ones."""
    weights, report = from_official(official(name))
    residual = "prenorm" if name.startswith("DCS_8") else "normed"
    network = QCSNetwork(
        IR(),
        num_classes=int(name[4]),
        roles=4 if name.startswith("QCS") else 2,
        cross={"similarity": {"residual": residual}},
    )
    network.load_state_dict(weights)
    return network, {ours: key for key, ours in report.mapped.items()}


def batch(roles: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    images = [torch.from_numpy(recipe.images(tag, 3)) for tag in ROLES[:roles]]
    return {"images": torch.stack(images, dim=1).to(dtype), "labels": LABELS[:, :roles]}


def test_recipe_reproduces():
    recipe.self_check()


@pytest.mark.parametrize("name", MODELS)
def test_every_official_key_is_mapped_or_dropped(name):
    keys = json.loads((PARITY / "keys" / f"{name}.json").read_text())
    _, report = from_official({k: torch.zeros(()) for k, _, _ in keys["keys"]})
    assert set(report.dropped) == set(keys["unused"] + keys["unused_buffers"])
    assert len(report.mapped) + len(report.dropped) == len(keys["keys"])


def check_gradients(network, names, golden, prefix, double):
    grads = {names[k]: p.grad.double() for k, p in network.named_parameters()}
    order = golden["all_grad_names"].tolist()
    assert sorted(order) == sorted(grads)  # no parameter that the authors' code does not train
    norms = np.array([grads[k].norm() for k in order])
    expected = golden[prefix + "all_grad_l2"]
    np.testing.assert_allclose(norms, expected, rtol=1e-8 if double else 4e-3)
    total = np.sqrt((norms**2).sum())
    np.testing.assert_allclose(
        total, golden[prefix + "grad_total_l2"], rtol=1e-8 if double else 5e-4
    )
    named = np.array([grads[k].norm() for k in golden["named_params"].tolist()])
    np.testing.assert_allclose(named, golden[prefix + "grad_l2"], rtol=1e-8 if double else 5e-4)
    if double:
        probes = [torch.from_numpy(filled(f"{k}:probe", tuple(grads[k].shape))) for k in order]
        dots = np.array([(grads[k] * p).sum() for k, p in zip(order, probes, strict=True)])
        assert np.all(np.abs(dots - golden[prefix + "all_grad_dot"]) <= 1e-8 * expected)
    if network.roles == 4:
        theta = [grads[f"cross_attention_{i}.theta"].item() for i in (1, 2, 3)]
        np.testing.assert_allclose(
            theta, golden[prefix + "theta_grad"], rtol=1e-8 if double else 2e-4
        )


def check_batch_norm(network, names, golden, prefix, atol):
    buffers = {names[k]: b for k, b in network.named_buffers()}
    for i, layer in enumerate(golden["bn_names"].tolist()):
        mean, var = buffers[f"{layer}.running_mean"], buffers[f"{layer}.running_var"]
        np.testing.assert_allclose(mean, golden[f"{prefix}bn{i}_mean"], atol=atol, rtol=0)
        np.testing.assert_allclose(var, golden[f"{prefix}bn{i}_var"], atol=atol, rtol=0)
        assert buffers[f"{layer}.num_batches_tracked"] == golden["bn_num_batches"][i]


@pytest.mark.parametrize("name", DOUBLE + SINGLE)
def test_network_reproduces_the_authors_numbers(name):
    double = name in DOUBLE
    dtype, prefix, atol = (
        (torch.float64, "f64_", 1e-10) if double else (torch.float32, "f32_", 3e-5)
    )
    golden = np.load(PARITY / f"golden_{name}.npz")
    network, names = build(name)
    network.to(dtype).eval()
    data = batch(network.roles, dtype)
    with torch.no_grad():
        logits = network(data["images"][:, 0])
    np.testing.assert_allclose(logits, golden[prefix + "eval_logits"], atol=atol, rtol=0)

    out = network.train().compare(data["images"])
    logits = torch.cat([out.base_logits, out.cross_logits], dim=1).transpose(0, 1).detach()
    np.testing.assert_allclose(logits, golden[prefix + "train_logits"], atol=atol, rtol=0)
    losses = [
        F.cross_entropy(x, y) for x, y in zip(logits, data["labels"].T.tile(2, 1), strict=True)
    ]
    np.testing.assert_allclose(losses, golden[prefix + "train_losses"], atol=atol, rtol=0)

    loss = QCSLoss()(out, data["labels"])["loss"]
    np.testing.assert_allclose(loss.item(), golden[prefix + "train_loss"], atol=atol, rtol=0)
    loss.backward()
    check_gradients(network, names, golden, prefix, double)
    check_batch_norm(network, names, golden, prefix, atol)


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_attention_functions_reproduce_the_authors_numbers(dtype, atol):
    golden = np.load(PARITY / "golden_csa.npz")
    prefix = "f64_" if dtype == torch.float64 else "f32_"
    tokens = [torch.from_numpy(recipe.fill(f"tok{i}", (2, 49, 768))) for i in (1, 2, 3, 4)]
    queries = torch.stack(tokens, dim=1).to(dtype)
    gain = 1 + math.tanh(0.3)
    maps = {
        "QCS_SD": cross_similarity(queries, "both", gain),
        "QCS_S": cross_similarity(queries, "similarity"),
        "QCS_D": cross_similarity(queries, "distance"),
        "DCS_S": cross_similarity(queries[:, :2], "both"),
    }
    for name, value in maps.items():
        expected = golden[prefix + name]
        np.testing.assert_allclose(value.transpose(0, 1), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_dot_product_maps_reproduce_the_authors_numbers(dtype, atol):
    """The maps are inside of torch's attention; identity values bring them to light."""
    from qcs.models.cross_similarity import dot_attention

    golden = np.load(PARITY / "golden_csa.npz")
    prefix = "f64_" if dtype == torch.float64 else "f32_"
    tokens = [torch.from_numpy(recipe.fill(f"tok{i}", (2, 49, 768))) for i in (1, 2)]
    queries = torch.stack(tokens, dim=1).to(dtype)
    maps = dot_attention(queries, torch.eye(49, dtype=dtype).expand(2, 2, 49, 49))
    np.testing.assert_allclose(maps.transpose(0, 1), golden[prefix + "HW"], atol=atol, rtol=0)
