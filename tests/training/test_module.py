"""The test step, whose numbers are those of `qcs eval`."""

from functools import partial

import torch

from conftest import tiny_network
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule


def test_the_test_is_computed_without_the_mixed_precision_of_the_training():
    network, names = tiny_network().eval(), ["red", "green", "blue"]
    module = QCSModule(network, QCSLoss(), partial(torch.optim.Adam, lr=1e-3), names)
    images, rows = torch.randn(2, 3, 16, 16), torch.arange(2)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            module.test_step({"images": images, "rows": rows, "labels": rows}, 0)
            assert network(images).dtype == torch.bfloat16
        assert torch.equal(module.test_outputs[0][1], network(images))
