"""The picture of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from qcs.plots.figure import save
from qcs.plots.text import NAME, label, wrapped


def confusion(matrix: Tensor, class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix in percent of each true class.

    The name of a true class is followed by its number of faces. A class without a face has an
    empty row.

    Args:
        matrix: (K, K) counts; rows are true classes, columns are predicted ones.
        path: file to write; its suffix is the format, png, pdf or svg.
    """
    number, total = len(class_names), matrix.sum(1, keepdim=True)
    share = (100 * matrix.double() / total).numpy()  # NaN in the row of a class without a face
    cell = min(0.75, 30 / number)  # inches
    size = 1.6 + cell * number
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    readable = cell > 0.4
    for row, column in np.ndindex(*share.shape) if readable else ():
        if total[row]:
            color = "white" if share[row, column] > 55 else "black"
            text = f"{share[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=12 * cell)
    columns = [label(name, NAME) for name in class_names]
    rows = [label(f"{n} ({int(t)})", NAME) for n, t in zip(class_names, total, strict=True)]
    axes.set_xticks(range(number), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), rows)
    axes.set(xlabel="predicted class", ylabel="true class (faces)")
    axes.set_title(wrapped(title, size, 12))
    figure.colorbar(shown, ax=axes, shrink=0.7).set_label("percent of each true class")
    save(figure, path)
