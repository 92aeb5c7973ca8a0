"""Sheets of faces.

`path` is the file to write, whose suffix is its format: png, pdf or svg. `heading` is the text
above. Pixels are in [0, 1].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from qcs.plots.figure import save
from qcs.plots.text import lines, wrapped

SIDE = 1.55  # width of a face on a sheet and of the gap to the next one, in inches


def to_pixels(image: Image) -> Tensor:
    """Turn an RGB PIL image into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def face_sheet(
    images: Tensor, titles: Sequence[str], path: Path, correct: Sequence[bool], heading: str = ""
) -> None:
    """Draw a sheet of faces, each with a title, which is red where the prediction is wrong.

    Args:
        images: (N, 3, H, W).
        titles: N short texts.
        correct: N flags, whether each prediction is right.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    title_lines = max(title.count("\n") + 1 for title in titles)
    above = 0.13 * (0.6 + title_lines)  # height of the titles in inches
    text = wrapped(heading, SIDE * columns, 11)
    top = 0.19 * (text.count("\n") + 1)
    width, height = SIDE * columns, (SIDE + above) * rows + top
    figure = Figure(figsize=(width, height))  # no layout engine: 40 axes would take it seconds
    figure.suptitle(text, y=1.0, va="top", fontsize=11)
    for i, (image, title, good) in enumerate(zip(images, titles, correct, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = SIDE * column / width, 1 - (top + (SIDE + above) * (row + 1)) / height
        axes = figure.add_axes((left, bottom, 0.93 * SIDE / width, 0.93 * SIDE / height))
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
        axes.set_axis_off()
        shown = lines(title, ems=0.93 * SIDE * 72 / 7.5)
        axes.set_title(shown, fontsize=7.5, pad=3, color="black" if good else "crimson")
    save(figure, path)
