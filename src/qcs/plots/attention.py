"""Sheets of the attention of a network to faces.

`path` is the file to write, whose suffix is its format: png, pdf or svg. `heading` is the text
above. Pixels are in [0, 1], and N, the number of values of a map, is a square number.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn.functional import interpolate

from qcs.plots.figure import save
from qcs.plots.text import label, lines, wrapped


def attention_sheet(
    images: Tensor, attention: Tensor, titles: Sequence[str], path: Path, heading: str = ""
) -> None:
    """Draw the faces of a group in columns, and below each face its attention at every level.

    Args:
        images: (R, 3, H, W).
        attention: (R, L, N), whose N values sum to 1.
        titles: R short texts.
    """
    maps = attention.transpose(0, 1)
    rows = [f"level {number}" for number in range(1, len(maps) + 1)]
    untitled = [[""] * len(images)] * len(maps)
    class_token_maps(images, maps, untitled, path, rows, heading, columns=titles)


def class_token_maps(
    images: Tensor,
    maps: Tensor,
    titles: Sequence[Sequence[str]],
    path: Path,
    rows: Sequence[str] = (),
    heading: str = "",
    correct: Sequence[Sequence[bool]] | None = None,
    columns: Sequence[str] = (),
) -> None:
    """Draw M faces in columns, and below them a row of attention maps for each network.

    Args:
        images: (M, 3, H, W).
        maps: (R, M, N), of which each sums to 1. They are drawn in multiples of 1 / N, the value of
            uniform attention, all in the same scale.
        titles: R lists of M texts.
        rows: R names.
        correct: R lists of M flags; a title is red where its flag is False.
        columns: M texts above the faces.
    """
    maps = _multiples(maps)
    width = 1.7 * len(images)
    size = (width + 1, 2.0 * (len(maps) + 1) + 0.4)
    figure, axes = _grid(len(maps) + 1, len(images), size, heading, width)
    for ax, image in zip(axes[0], images, strict=True):
        _show(ax, image)
    for ax, name in zip(axes[0], columns, strict=False):
        ax.set_title(lines(name, ems=1.65 * 72 / 9), fontsize=9)
    norm = _norm(maps)
    for r, m in np.ndindex(*maps.shape[:2]):
        shown = _overlay(axes[r + 1, m], images[m], maps[r, m], norm)
        good = correct is None or correct[r][m]
        title = lines(titles[r][m], ems=1.65 * 72 / 8)
        axes[r + 1, m].set_title(title, fontsize=8, color="black" if good else "crimson")
    for ax, name in zip(axes[1:, 0], rows, strict=False):
        ax.set_ylabel(label(name, ems=1.8 * 72 / 10), fontsize=10)
    _scale(figure, shown, axes[1:])
    save(figure, path)


def pair_grid(
    images: Tensor,
    maps: Tensor,
    names: Sequence[str],
    path: Path,
    heading: str = "",
    partners: Tensor | None = None,
) -> None:
    """Draw M faces down the side and along the top, and in each cell the map of a pair.

    Args:
        images: (M, 3, H, W).
        maps: (M, M, N), of `qcs.models.attention_maps.pair_maps`; the
            map [i, j] is drawn over face i.
        names: M labels. Faces of the same label are compared for what they share, and the cells of
            such pairs are framed.
        partners: (M, 3, H, W), the faces that the diagonal cells compare with; None where each
            face is compared with itself.
    """
    number, multiples = len(images), _multiples(maps)
    side = number + (1 if partners is None else 2)
    size = (1.3 * side + 1, 1.3 * side + 0.4)
    figure, axes = _grid(number + 1, side, size, heading, 1.3 * side)
    norm = _norm(multiples)
    for i, (image, name) in enumerate(zip(images, names, strict=True), start=1):
        for ax in (axes[0, i], axes[i, 0]):
            _show(ax, image)
        axes[0, i].set_title(label(name, ems=1.25 * 72 / 9), fontsize=9)
        axes[i, 0].set_ylabel(label(name, ems=1.25 * 72 / 9), fontsize=9)
    for i, j in np.ndindex(number, number):
        shown = _overlay(axes[i + 1, j + 1], images[i], multiples[i, j], norm)
        if names[i] == names[j]:
            for spine in axes[i + 1, j + 1].spines.values():
                spine.set(color="deepskyblue", linewidth=2.5)
    if partners is not None:
        for ax, image in zip(axes[1:, -1], partners, strict=True):
            _show(ax, image)
        axes[1, -1].set_title("on the diagonal,\ncompared with", fontsize=8)
        axes[0, -1].set_axis_off()
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, "framed: what is shared\nelse: what differs", ha="center",
                    va="center", fontsize=7)  # fmt: skip
    _scale(figure, shown, axes)
    save(figure, path)


def _grid(
    rows: int, columns: int, size: tuple[float, float], heading: str, width: float
) -> tuple[Figure, np.ndarray]:
    """Make a figure of (rows, columns) axes without ticks; sizes are in inches."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(wrapped(heading, width, 11), fontsize=11)
    options: dict[str, list] = {"xticks": [], "yticks": []}
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw=options)


def _show(ax: Axes, image: Tensor) -> None:
    ax.imshow(image.permute(1, 2, 0).numpy())


def _multiples(attention: Tensor) -> Tensor:
    """Turn attention (..., N), which sums to 1, into maps (..., G, G) in multiples of 1 / N."""
    grid = int(attention.shape[-1] ** 0.5)
    return (attention * attention.shape[-1]).unflatten(-1, (grid, grid))


def _norm(maps: Tensor) -> PowerNorm:
    """Return one colour scale for all maps: a square root, so that one peak hides no others."""
    return PowerNorm(0.5, vmin=0, vmax=maps.max().item())


def _overlay(ax: Axes, image: Tensor, multiples: Tensor, norm: PowerNorm) -> AxesImage:
    """Draw a map (G, G), in multiples of uniform attention, over a face (3, H, W) in grey."""
    # The colours show the square root, so it is the root that has to be smooth.
    root = multiples.sqrt()[None, None]
    smooth = interpolate(root, image.shape[1:], mode="bilinear")[0, 0] ** 2
    ax.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(smooth.numpy(), cmap="inferno", norm=norm, alpha=0.55)


def _scale(figure: Figure, shown: AxesImage, axes: np.ndarray) -> None:
    """Add the colour bar of all maps."""
    bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.85, pad=0.01)
    bar.set_label("attention, in multiples of its even share", fontsize=8)
    bar.ax.tick_params(labelsize=7)
