"""Sheets of faces, and of where a network looks on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import interpolate

from qcs.plots.figure import save


def to_pixels(image: Image) -> Tensor:
    """Turn an RGB PIL image into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


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
    save(figure, path)


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
    save(figure, path)


def gaze_sheet(
    images: Tensor,
    gaze: Tensor,
    titles: Sequence[Sequence[str]],
    path: Path,
    rows: Sequence[str] = (),
    heading: str = "",
    correct: Sequence[Sequence[bool]] | None = None,
    columns: Sequence[str] = (),
) -> None:
    """Draw M faces in columns under their maps, one row of maps for each network.

    Args:
        images: (M, 3, H, W), pixels in [0, 1].
        gaze: (R, M, N), N a square; a map sums to 1. One scale for all.
        titles: R lists of M texts.
        path: PNG file to write.
        rows: R names.
        heading: above the picture.
        correct: R lists of M flags; a title is red where it is false.
        columns: M texts above the faces.
    """
    grid = int(gaze.shape[-1] ** 0.5)
    maps = (gaze * gaze.shape[-1]).unflatten(-1, (grid, grid))
    figure = Figure(
        figsize=(1.7 * len(images) + 1, 2.0 * (len(maps) + 1) + 0.4), layout="constrained"
    )
    figure.suptitle(heading, fontsize=11)
    axes = figure.subplots(len(maps) + 1, len(images), squeeze=False)
    for ax, image in zip(axes[0], images, strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy())
    for ax, name in zip(axes[0], columns, strict=False):
        ax.set_title(name, fontsize=9)
    norm = PowerNorm(0.5, vmin=0, vmax=maps.max().item())
    for r, m in np.ndindex(*maps.shape[:2]):
        shown = _gaze(axes[r + 1, m], images[m], maps[r, m], norm)
        good = correct is None or correct[r][m]
        axes[r + 1, m].set_title(titles[r][m], fontsize=8, color="black" if good else "crimson")
    for ax, name in zip(axes[1:, 0], rows, strict=False):
        ax.set_ylabel(name, fontsize=10)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    _gaze_bar(figure, shown, axes[1:])
    save(figure, path)


def pair_grid(
    images: Tensor,
    maps: Tensor,
    names: Sequence[str],
    path: Path,
    heading: str = "",
    partners: Tensor | None = None,
) -> None:
    """Draw M faces down the side and along the top, and between them how each sees each.

    Args:
        images: (M, 3, H, W), pixels in [0, 1].
        maps: (M, M, N), N a square, of `qcs.models.attention_maps.pair_maps`: [i, j] is laid
            over face i.
        names: M labels; equal ones are compared for what they share, and framed.
        path: PNG file to write.
        heading: above the picture.
        partners: (M, 3, H, W), the other face of each diagonal cell, where it is not the same.
    """
    number, grid = len(images), int(maps.shape[-1] ** 0.5)
    gaze = (maps * maps.shape[-1]).unflatten(-1, (grid, grid))
    side = number + (1 if partners is None else 2)
    figure = Figure(figsize=(1.3 * side + 1, 1.3 * side + 0.4), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    axes = figure.subplots(number + 1, side, squeeze=False)
    norm = PowerNorm(0.5, vmin=0, vmax=gaze.max().item())
    for i, (image, name) in enumerate(zip(images, names, strict=True), start=1):
        for ax in (axes[0, i], axes[i, 0]):
            ax.imshow(image.permute(1, 2, 0).numpy())
        axes[0, i].set_title(name, fontsize=9)
        axes[i, 0].set_ylabel(name, fontsize=9)
    for i, j in np.ndindex(number, number):
        shown = _gaze(axes[i + 1, j + 1], images[i], gaze[i, j], norm)
        if names[i] == names[j]:
            for side in axes[i + 1, j + 1].spines.values():
                side.set(color="deepskyblue", linewidth=2.5)
    if partners is not None:
        for ax, image in zip(axes[1:, -1], partners, strict=True):
            ax.imshow(image.permute(1, 2, 0).numpy())
        axes[1, -1].set_title("on the diagonal,\ncompared with", fontsize=8)
        axes[0, -1].set_axis_off()
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, "framed: what is shared\nelse: what differs", ha="center",
                    va="center", fontsize=7)  # fmt: skip
    _gaze_bar(figure, shown, axes)
    save(figure, path)


def _attention_row(figure: Figure, line: np.ndarray, images: Tensor, level: Tensor) -> None:
    """Lay (R, G, G) multiples of even attention over grey faces (R, 3, H, W), in R axes."""
    norm = PowerNorm(0.5, vmin=0, vmax=level.max().item())  # or one peak hides all others
    for ax, image, gaze in zip(line, images, level, strict=True):
        shown = _gaze(ax, image, gaze, norm)
    _gaze_bar(figure, shown, line)


def _gaze(ax: Axes, image: Tensor, gaze: Tensor, norm: PowerNorm) -> AxesImage:
    """Lay a map (G, G), multiples of even attention, over a grey face (3, H, W)."""
    root = gaze.sqrt()[None, None]  # smooth as it is seen: the scale is steep at zero
    smooth = interpolate(root, image.shape[1:], mode="bilinear")[0, 0] ** 2
    ax.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(smooth.numpy(), cmap="inferno", norm=norm, alpha=0.55)


def _gaze_bar(figure: Figure, shown: AxesImage, axes: np.ndarray) -> None:
    bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.85, pad=0.01)
    bar.set_label("times even attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
