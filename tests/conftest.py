"""Small things that several tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from qcs.checkpoints import recipe
from qcs.data.manifest import Manifest
from qcs.models import IR, QCSNetwork
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule
from qcs.training.sam import gradient_norm

torch.set_num_threads(2)
if "PYTEST_XDIST_WORKER" in os.environ:  # two of them on two cores
    torch.set_num_threads(1)
    os.environ["GOMP_SPINCOUNT"] = "0"  # of the processes that tests start

LONG = ("integration", "models", "tests", "training")  # folders with the files that take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that no worker waits long for the last file of the other."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def tiny_network(roles: int = 4, num_classes: int = 3, **options) -> QCSNetwork:
    """A network of a few thousand parameters on 16-pixel images, deterministic."""
    torch.manual_seed(0)
    cross = options.pop("cross", {} if roles > 1 else None)
    backbone = options.pop("backbone", None) or IR((1, 1), (8, 16), stem_stride=2)
    sizes = {"input_size": 16, "embed_dim": 16, "grid": 2, "num_heads": 2} | options
    return QCSNetwork(backbone, num_classes, roles=roles, cross=cross, **sizes)


def three_colours(folder: Path) -> Manifest:
    """36 train, 9 val and 9 test images of three colours that a classifier can tell apart."""
    rng, rows = np.random.default_rng(0), []
    for split, number in {"train": 12, "val": 3, "test": 3}.items():
        for label, i in np.ndindex(3, number):
            pixels = rng.integers(0, 90, (20, 20, 3), dtype=np.uint8)
            pixels[..., label] += 150
            name = f"{split}-{label}-{i}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append((name, label, split))
    return Manifest.build(folder, rows, ("red", "green", "blue"))


@pytest.fixture
def named_photos(tmp_path: Path) -> Path:
    """A folder with three pictures in its folder `in`, one of which has an odd name."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "ü c.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / "in" / name)
    return tmp_path


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def faces(tmp_path: Path) -> Manifest:
    """Three colours in a folder of their own."""
    return three_colours(tmp_path)


@pytest.fixture(scope="module")
def faces_table(tmp_path_factory) -> Path:
    """The CSV of such faces, for tests that share them."""
    folder = tmp_path_factory.mktemp("faces")
    three_colours(folder).to_csv(folder / "table.csv")
    return folder / "table.csv"


def tiny_checkpoint(path: Path, source: str = "csv", roles: int = 4) -> Path:
    """An untrained checkpoint of three colours, from that source of data."""
    parts = tiny_recipe(source, roles)
    torch.manual_seed(0)
    state = recipe.network(parts).state_dict()
    torch.save({"qcs": parts, "state_dict": {f"network.{k}": v for k, v in state.items()}}, path)
    return path


def tiny_recipe(source: str = "csv", roles: int = 4) -> dict:
    """The recipe of a tiny network of three colours."""
    model = {"name": "qcs", "roles": roles, "input_size": 16, "embed_dim": 16, "grid": 2}
    model |= {"num_heads": 2, "cross": {} if roles > 1 else None}
    return {
        "format": 2,
        "qcs_version": "0",
        "class_names": ["red", "green", "blue"],
        "backbone": {"name": "ir", "units": [1, 1], "channels": [8, 16], "stem_stride": 2},
        "model": model,
        "dataset": {"name": source},
        "transform": {"name": "evaluation", "size": 16, "resize": 20},
        "select_on": "val",
    }


class RecordedLoss(QCSLoss):
    """The paper's loss, which keeps its values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def forward(self, out, labels):
        parts = super().forward(out, labels)
        self.values.append(parts["loss"].item())
        return parts


def sam_steps(
    network: QCSNetwork, batch: dict[str, torch.Tensor], steps: int, folder: Path
) -> tuple[list[float], list[float]]:
    """Train on one batch through the Trainer, so that the loop that users run is what is tested.

    Returns:
        All losses, two a step, and the norms of the first gradients.
    """
    loss, norms = RecordedLoss(), []
    adam = lambda params: torch.optim.Adam(params, lr=1e-3)  # noqa: E731
    module = QCSModule(network, loss, adam, class_names=[str(i) for i in range(7)])
    second = module._second_gradient

    def record(optimizer):
        norms.append(gradient_norm(network.parameters()).item())
        second(optimizer)

    module._second_gradient = record
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys(silent, False) | {"accelerator": "cpu", "default_root_dir": folder}
    trainer = Trainer(precision="64-true", max_epochs=1, **options)
    trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    assert trainer.global_step == steps
    return loss.values, norms
