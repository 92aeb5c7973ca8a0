"""Pictures of numbers: scores, curves, searches."""

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


def reliability(found: dict[str, Tensor], path: Path, title: str = "") -> None:
    """Draw accuracy by confidence, the gap to what was promised, and how many faces are where.

    Args:
        found: of `qcs.evaluation.metrics.calibration`.
        path: PNG file to write.
        title: above the picture, with the calibration error below it.
    """
    count, confidence, accuracy = (found[k].numpy() for k in ("count", "confidence", "accuracy"))
    some, width = count > 0, 1 / len(count)
    middle = (np.arange(len(count)) + 0.5) * width
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    box = {"width": width, "edgecolor": "white", "linewidth": 0.8}
    above.bar(middle[some], accuracy[some], color="steelblue", label="accuracy", **box)
    gap = (confidence - accuracy)[some]
    box |= {"width": 0.45 * width, "color": "crimson", "alpha": 0.45}
    above.bar(middle[some], gap, bottom=accuracy[some], label="gap to confidence", **box)
    above.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    above.set(ylim=(0, 1), ylabel="accuracy", title=f"{title}\nECE {100 * found['ece']:.2f} %")
    above.legend(frameon=False, loc="upper left")
    below.bar(middle, count, width=width, color="grey", edgecolor="white", linewidth=0.8)
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="faces")
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


def embedding(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draw points of the plane, coloured by class.

    Args:
        points: (N, 2).
        labels: (N,) class indices.
        class_names: K names; those without a point are left out.
        path: PNG file to write.
        title: above the picture.
    """
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    axes = figure.add_subplot()
    for label, name in enumerate(class_names):
        x, y = points[labels == label].T
        if len(x):
            color = f"C{label}" if label < 10 else None
            axes.scatter(
                x, y, s=11, alpha=0.7, linewidths=0, color=color, label=f"{name} ({len(x)})"
            )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axes.set(xticks=[], yticks=[], title=title)
    save(figure, path)


PANELS = {
    "loss": ("train/loss_epoch", "train/loss_base_epoch", "train/loss_cross_epoch"),
    "accuracy": ("train/acc_epoch", "train/acc_cross_epoch", "val/acc"),
}


def curves(runs: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    """Draw losses and accuracies by epoch, a colour for each run, a style for each metric.

    Args:
        runs: by name, and by metric (those of `PANELS` are drawn), points (epoch, value).
        path: PNG file to write.
    """
    figure = Figure(figsize=(11, 4.2 + 0.2 * len(runs)), layout="constrained")
    styles = ("-", "--", ":")
    for axes, (panel, metrics) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for number, values in enumerate(runs.values()):
            for metric, style in zip(metrics, styles, strict=True):
                if points := values.get(metric):
                    marker = "." if len(points) < 20 else None
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number % 10}",
                              marker=marker)  # fmt: skip
        for metric, style in zip(metrics, styles, strict=True):
            axes.plot([], [], style, color="black", label=metric.removesuffix("_epoch"))
        axes.set(xlabel="epoch", ylabel=panel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    names = [figure.axes[0].plot([], [], color=f"C{n % 10}")[0] for n in range(len(runs))]
    figure.legend(names, list(runs), loc="outside lower center", frameon=False, fontsize=8)
    save(figure, path)


def groups(values: dict[str, Sequence[float]], path: Path, title: str = "") -> None:
    """Draw the top-1 of each network of each group, and each group's mean.

    Args:
        values: shares in [0, 1] by the name of the group.
        path: PNG file to write.
        title: above the picture.
    """
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    for row, found in enumerate(values.values()):
        percent = 100 * np.asarray(found)
        axes.plot(percent, np.full(len(percent), row), "o", color="steelblue", alpha=0.6)
        axes.plot([percent.mean()] * 2, [row - 0.3, row + 0.3], color="crimson", linewidth=2)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set(xlabel="top-1, percent: a point a seed, the line their mean", title=title)
    save(figure, path)
