"""Pictures of numbers: confusion, searches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from qcs.plots.figure import save


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
    save(figure, path)


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
    save(figure, path)


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
    save(figure, path)
