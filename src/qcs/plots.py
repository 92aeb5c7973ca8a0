"""Every picture we make. Figures are written without pyplot, so no display is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def confusion(matrix: Tensor, class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix as percentages of the true class, with the counts' class sizes.

    Args:
        matrix: (K, K) counts, rows are true classes.
        class_names: K names.
        path: PNG file to write.
        title: above the picture.
    """
    total = matrix.sum(1, keepdim=True)
    share = (100 * matrix.double() / total.clamp(min=1)).numpy()
    size = 1.6 + 0.75 * len(class_names)
    figure = Figure(figsize=(size, size))
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape):
        color = "white" if share[row, column] > 55 else "black"
        text = f"{share[row, column]:.1f}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    rows = [f"{name} ({int(n)})" for name, n in zip(class_names, total.flatten(), strict=True)]
    axes.set_xticks(range(len(class_names)), class_names, rotation=40, ha="right")
    axes.set_yticks(range(len(class_names)), rows)
    axes.set(xlabel="predicted", ylabel="true (faces)", title=title)
    _save(figure, path)


def face_sheet(
    images: Tensor, titles: Sequence[str], path: Path, correct: Sequence[bool], heading: str = ""
) -> None:
    """Draw a sheet of faces with a title each, red where the prediction is wrong.

    Args:
        images: (N, 3, H, W), pixels in [0, 1].
        titles: N short texts.
        path: PNG file to write.
        correct: N flags.
        heading: above the sheet.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.55 * columns, 1.9 * rows))
    figure.suptitle(heading, y=1.0, fontsize=11)
    for i, (image, title, good) in enumerate(zip(images, titles, correct, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, i)
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
        axes.set_axis_off()
        axes.set_title(title, fontsize=7.5, color="black" if good else "crimson")
    figure.tight_layout()
    _save(figure, path)


def to_pixels(image: Image) -> Tensor:
    """Turn an RGB PIL image into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
