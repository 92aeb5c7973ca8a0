"""What tests/test_distributed.py runs under torchrun, and alone for comparison.

Normalisation over groups instead of batches, extremes of each sample: the setting in which half
batches in two processes and whole ones in one must agree.
"""

import json
import sys
from pathlib import Path

import torch
from lightning import Trainer
from torch import nn

from conftest import tiny_network
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule

BATCH = 10  # of all processes together
CASES = {
    "plain": {"sam": {"rho": 0.0}},
    "sam": {"sam": {"rho": 0.05}},
    "accumulated": {"sam": {"rho": 0.05}, "accumulate_grad_batches": 2},
    "clipped": {"sam": {"rho": 0.05}, "gradient_clip_norm": 0.01},
    "each its own": {"sam": {"rho": 0.05, "sync_first": False}, "accumulate_grad_batches": 2},
}


def network() -> nn.Module:
    """A tiny network whose normalisation knows no batch."""
    net = tiny_network(4, cross={"similarity": {"extremes": "sample"}})
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(1, module.num_features))
    return net


def fit(table: Path, case: str, world: int) -> dict:
    """Train two epochs of 31 anchors (10, 10, 10 and 1), validate and test."""
    faces = Manifest.from_csv(table, class_names=("red", "green", "blue"))
    data = FaceDataModule(
        faces,
        transforms.training(16),
        transforms.evaluation(16),
        batch_size=BATCH // world,
        eval_batch_size=2,
        samples_per_epoch=31,
        num_workers=0,
    )
    module = QCSModule(
        network(),
        QCSLoss(),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        class_names=faces.class_names,
        **CASES[case],
    )
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="64-true",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    found = {"metrics": {k: float(v) for k, v in trainer.callback_metrics.items()}}
    trainer.test(module, data, verbose=False)
    weights = [p.detach().clone() for p in module.network.parameters()]
    return found | {"weights": weights, "test": module.test_outputs[0]}


if __name__ == "__main__":
    table, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    results = {case: fit(table, case, 2) for case in cases}
    torch.save(results, out / f"{torch.distributed.get_rank()}.pt")
