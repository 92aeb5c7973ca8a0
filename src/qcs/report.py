"""What a trained network is worth on a split: numbers, tables and pictures in a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qcs import plots
from qcs.data.groups import Faces, Transform
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.metrics import class_scores, confusion_matrix, scores
from qcs.models import QCSNetwork

SHEET_FACES = 40
ROLE_NAMES = ("anchor", "positive", "negative", "negative 2")


def write(
    folder: Path, logits: Tensor, labels: Tensor, manifest: Manifest, about: dict[str, Any]
) -> dict[str, Any]:
    """Write metrics.json, confusion.json, confusion.png, faces.png and hardest.png;
    print a table.

    Args:
        folder: made if missing.
        logits: (N, K) in the manifest's order.
        labels: (N,) class indices.
        manifest: the N images.
        about: where the numbers come from (data set, split, checkpoint, what it was selected on).

    Returns:
        What metrics.json holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = manifest.class_names
    matrix = confusion_matrix(logits.argmax(1), labels, len(names))
    overall = {k: round(float(v), 6) for k, v in scores(matrix).items()}
    columns = {k: v.tolist() for k, v in class_scores(matrix).items()}
    by_class = {
        name: {k: round(v[i], 6) for k, v in columns.items()} for i, name in enumerate(names)
    }
    result = {**about, "images": len(labels), **overall, "classes": by_class}
    _write_json(folder / "metrics.json", result)
    _write_json(
        folder / "confusion.json", {"class_names": list(names), "rows_are_true": matrix.tolist()}
    )
    title = f"{about['dataset']}, {about['split']}: top-1 {100 * overall['acc']:.2f} %"
    plots.confusion(matrix, names, folder / "confusion.png", title)
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:SHEET_FACES]
    heading = f"{title}; random faces, mistakes in red"
    _sheet(folder / "faces.png", some, logits, labels, manifest, heading)
    hardest = cross_entropy(logits, labels, reduction="none").argsort(descending=True)
    heading = f"{title}; the faces of highest loss"
    _sheet(folder / "hardest.png", hardest[:SHEET_FACES], logits, labels, manifest, heading)
    _print(result, title)
    return result


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sheet(
    path: Path, rows: Tensor, logits: Tensor, labels: Tensor, manifest: Manifest, heading: str
) -> None:
    """Draw the faces of some rows with their predictions and, where these are wrong, labels."""
    images = [manifest.image(int(row)).resize((128, 128)) for row in rows]
    pixels = torch.stack([plots.to_pixels(image) for image in images])
    probabilities, predicted = logits[rows].softmax(1).max(1)
    names, correct = manifest.class_names, (predicted == labels[rows]).tolist()
    titles = [
        f"{names[p]} {100 * q:.0f} %" + ("" if p == y else f"\nis {names[y]}")
        for p, q, y in zip(predicted, probabilities, labels[rows], strict=True)
    ]
    plots.face_sheet(pixels, titles, path, correct, heading)


def _print(result: dict[str, Any], title: str) -> None:
    table = Table("class", "faces", "precision", "recall", "F1", title=title, min_width=len(title))
    for name, row in result["classes"].items():
        numbers = (f"{100 * row[k]:.2f}" for k in ("precision", "recall", "f1"))
        table.add_row(name, str(row["support"]), *numbers)
    table.caption = (
        f"top-1 {100 * result['acc']:.2f} %   "
        f"mean class accuracy {100 * result['mean_acc']:.2f} %   "
        f"macro-F1 {100 * result['f1']:.2f} %   ({result['images']} images)"
    )
    Console().print(table)


def fixed_group(labels: np.ndarray, roles: int, seed: int) -> list[int]:
    """Draw the rows of one group [a, p] or [a, p, n, n2]; what is rare repeats itself."""
    rng = np.random.default_rng(seed)
    classes = np.resize(rng.permutation(np.unique(labels)), roles // 2)
    pairs = [np.resize(rng.permutation(np.flatnonzero(labels == c)), 2) for c in classes]
    return np.concatenate(pairs).tolist()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation for the length of the block, then back where it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def draw_attention(
    path: Path,
    network: QCSNetwork,
    manifest: Manifest,
    transform: Transform,
    seed: int,
    heading: str = "",
) -> bool:
    """Draw one seeded group of a manifest with its attention at each level.

    Returns:
        Whether there is something to draw: the network has cross similarity attention.
    """
    if network.cross is None:
        return False
    rows, names = fixed_group(manifest.labels, network.roles, seed), manifest.class_names
    faces, first = Faces(manifest, transform), next(network.parameters())
    images = torch.stack([faces[row]["images"] for row in rows])
    with evaluating(network):
        out = network.compare(images[None].to(first.device, first.dtype))
    if out.attention is None:  # dot-product attention weighs no tokens
        return False
    shares, predicted = out.base_logits[0].float().cpu().softmax(-1).max(-1)
    titles = [
        f"{role}: {names[manifest.labels[row]]}\nseen as {names[p]} {100 * q:.0f} %"
        for role, row, p, q in zip(ROLE_NAMES, rows, predicted, shares, strict=False)
    ]
    pixels = unnormalised(images, transform)
    plots.attention_sheet(pixels, out.attention[0].float().cpu(), titles, path, heading)
    return True
