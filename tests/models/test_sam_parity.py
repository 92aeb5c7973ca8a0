"""Steps of sharpness-aware minimisation against the authors' numbers.

They take minutes, so they have a file of their own: pytest-xdist gives a file to one process.
"""

import numpy as np
import pytest
import torch
from test_parity import PARITY, batch, build

from conftest import sam_steps

ALL = 3


@pytest.mark.parametrize("steps", [1, pytest.param(ALL, marks=pytest.mark.slow)])
def test_sam_steps_reproduce_the_authors_numbers(steps, tmp_path):
    """The losses are those before a step and at its perturbed weights, the weights of its end."""
    golden = np.load(PARITY / "golden_QCS_7cls_raf_db.npz")
    network, names = build("QCS_7cls_raf_db")
    data = batch(4, torch.float64)
    losses, norms = sam_steps(network, data, steps, tmp_path)
    expected = golden["f64_sam_losses"][:steps].flatten()
    np.testing.assert_allclose(losses, expected, atol=1e-9, rtol=0)
    np.testing.assert_allclose(norms, golden["f64_sam_grad_norm"][:steps], rtol=1e-8)
    buffers = {names[k]: b for k, b in network.named_buffers()}
    layers = golden["bn_names"].tolist()
    counts = [int(buffers[f"{n}.num_batches_tracked"]) for n in layers]
    assert counts == [n * steps // ALL for n in golden["sam_bn_num_batches"].tolist()]
    if steps < ALL:
        return
    params = {names[k]: p.detach() for k, p in network.named_parameters()}
    chosen = [params[k] for k in golden["named_params"].tolist()]
    np.testing.assert_allclose(
        [p.sum() for p in chosen], golden["f64_sam_param_sum"], atol=1e-7, rtol=0
    )
    np.testing.assert_allclose([p.norm() for p in chosen], golden["f64_sam_param_l2"], rtol=1e-9)
    sums = [[buffers[f"{n}.running_{s}"].sum() for s in ("mean", "var")] for n in layers]
    np.testing.assert_allclose(sums, golden["f64_sam_bn_sums"], atol=1e-7, rtol=0)
    with torch.no_grad():
        logits = network.eval()(data["images"][:, 0])
    np.testing.assert_allclose(logits, golden["f64_sam_eval_logits"], atol=1e-7, rtol=0)
