"""What a trained network is worth on a split: numbers, tables and pictures in a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qcs import plots
from qcs.data.manifest import Manifest
from qcs.metrics import class_scores, confusion_matrix, scores

SHEET_FACES = 40


def write(
    folder: Path, logits: Tensor, labels: Tensor, manifest: Manifest, about: dict[str, Any]
) -> dict[str, Any]:
    """Write metrics.json, confusion.json, confusion.png and faces.png; print a table.

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
    _sheet(folder / "faces.png", logits, labels, manifest, title)
    _print(result, title)
    return result


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sheet(path: Path, logits: Tensor, labels: Tensor, manifest: Manifest, title: str) -> None:
    """Faces drawn at random (seeded), not chosen."""
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:SHEET_FACES]
    images = [manifest.image(int(row)).resize((128, 128)) for row in rows]
    pixels = torch.stack([plots.to_pixels(image) for image in images])
    probabilities, predicted = logits[rows].softmax(1).max(1)
    names, correct = manifest.class_names, (predicted == labels[rows]).tolist()
    titles = [
        f"{names[p]} {100 * q:.0f} %" + ("" if p == y else f"\nis {names[y]}")
        for p, q, y in zip(predicted, probabilities, labels[rows], strict=True)
    ]
    plots.face_sheet(pixels, titles, path, correct, f"{title}; random faces, mistakes in red")


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
