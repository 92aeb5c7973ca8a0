"""Every picture we make. Figures are written without pyplot, so no display is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
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


def attention_sheet(
    images: Tensor, attention: Tensor, titles: Sequence[str], path: Path, heading: str = ""
) -> None:
    """Draw the faces of a group in columns; below each, its attention at every level.

    Args:
        images: (R, 3, H, W), pixels in [0, 1].
        attention: (R, L, N), N a square; rows sum to 1. It is drawn as multiples of 1 / N, what
            an even gaze would give; a level has one scale for all faces.
        titles: R short texts.
        path: PNG file to write.
        heading: above the sheet.
    """
    grid = int(attention.shape[-1] ** 0.5)
    levels = (attention * attention.shape[-1]).unflatten(-1, (grid, grid)).transpose(0, 1)
    rows, columns = len(levels) + 1, len(images)
    figure = Figure(figsize=(1.9 * columns + 0.9, 2.0 * rows + 0.5), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, image, title in zip(axes[0], images, titles, strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy())
        ax.set_title(title, fontsize=8.5)
    for number, (line, level) in enumerate(zip(axes[1:], levels, strict=True), start=1):
        _attention_row(figure, line, images, level)
        line[0].set_ylabel(f"level {number}", fontsize=10)
    axes[0, 0].set_ylabel("input", fontsize=10)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    _save(figure, path)


def _attention_row(figure: Figure, line: np.ndarray, images: Tensor, level: Tensor) -> None:
    """Lay (R, G, G) multiples of even attention over grey faces (R, 3, H, W), in R axes."""
    norm = PowerNorm(0.5, vmin=0, vmax=level.max().item())  # or one peak hides all others
    for ax, image, gaze in zip(line, images, level, strict=True):
        height, width = image.shape[1:]
        ax.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
        shown = ax.imshow(
            gaze.numpy(),
            cmap="inferno",
            norm=norm,
            alpha=0.55,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
    bar = figure.colorbar(shown, ax=line.tolist(), shrink=0.85, pad=0.01)
    bar.set_label("times even attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def to_pixels(image: Image) -> Tensor:
    """Turn an RGB PIL image into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def search_history(
    points: Sequence[tuple[int, float | None]], path: Path, title: str = "", least: bool = False
) -> None:
    """Draw the value of each trial (None: pruned) and the best one so far.

    Args:
        points: number and value of each trial.
        path: PNG file to write.
        title: above the picture.
        least: whether the least value is the best.
    """
    best = np.minimum if least else np.maximum
    whole = [(n, v) for n, v in points if v is not None]
    figure = Figure(figsize=(6.5, 4))
    axes = figure.add_subplot()
    if whole:
        numbers, values = zip(*whole, strict=True)
        axes.plot(numbers, values, "o", color="steelblue", label="trial")
        axes.step(numbers, best.accumulate(values), "k", where="post", label="best so far")
    pruned = [n for n, v in points if v is None]
    floor = min((v for _, v in whole), default=0.0)
    if pruned:
        axes.plot(pruned, [floor] * len(pruned), "x", color="crimson", label="pruned")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel="value", title=title)
    axes.legend(frameon=False)
    _save(figure, path)


def importance(shares: dict[str, float], path: Path, title: str = "") -> None:
    """Draw how much of the spread of the values each option explains.

    Args:
        shares: in [0, 1] by option.
        path: PNG file to write.
        title: above the picture.
    """
    names = sorted(shares, key=shares.get)
    figure = Figure(figsize=(6.5, 1 + 0.4 * len(names)))
    axes = figure.add_subplot()
    axes.barh(names, [shares[name] for name in names], color="steelblue")
    axes.set(xlabel="importance", title=title)
    _save(figure, path)
