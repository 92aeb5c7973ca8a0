"""Pictures of numbers: calibration, curves, searches, embeddings.

`path` is the file to write, whose suffix is its format: png, pdf or svg. `title` is the text above.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from qcs.plots.figure import colour, save
from qcs.plots.text import NAME, label, wrapped


def reliability(found: dict[str, Tensor], path: Path, title: str = "") -> None:
    """Draw accuracy by confidence, the gap between the two, and the number of faces in each bin.

    Args:
        found: what `qcs.evaluation.metrics.calibration` returns.
        title: text above the picture; the calibration error follows in the next line.
    """
    count, confidence, accuracy = (found[k].numpy() for k in ("count", "confidence", "accuracy"))
    some, width = count > 0, 1 / len(count)
    middle = (np.arange(len(count)) + 0.5) * width
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    heading = wrapped(title, 5.2, 12)
    box = {"width": width, "edgecolor": "white", "linewidth": 0.8}
    above.bar(middle[some], accuracy[some], color="steelblue", label="accuracy", **box)
    gap = (confidence - accuracy)[some]
    box |= {"width": 0.45 * width, "color": "crimson", "alpha": 0.45}
    above.bar(middle[some], gap, bottom=accuracy[some], label="gap to confidence", **box)
    above.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    above.set(ylim=(0, 1), ylabel="accuracy", title=f"{heading}\nECE {100 * found['ece']:.2f} %")
    above.legend(frameon=False, loc="upper left")
    below.bar(middle, count, width=width, color="grey", edgecolor="white", linewidth=0.8)
    below.set(xlim=(0, 1), xlabel="confidence (the largest probability)", ylabel="faces")
    save(figure, path)


def search_history(
    points: Sequence[tuple[int, float | None]],
    path: Path,
    title: str = "",
    minimize: bool = False,
    metric: str = "value",
) -> None:
    """Draw the value of each trial of a search, and the best value so far.

    Args:
        points: the number and the value of each trial; the value is None if it was pruned.
        minimize: whether the smallest value is the best.
        metric: the name of the metric on the vertical axis.
    """
    best = np.minimum if minimize else np.maximum
    finished = [(n, v) for n, v in points if v is not None]
    figure = Figure(figsize=(6.5, 4))
    axes = figure.add_subplot()
    if finished:
        numbers, values = zip(*finished, strict=True)
        axes.plot(numbers, values, "o", color="steelblue", label="trial")
        axes.step(numbers, best.accumulate(values), "k", where="post", label="best so far")
    pruned = [n for n, v in points if v is None]
    floor = min((v for _, v in finished), default=0.0)
    if pruned:
        axes.plot(pruned, [floor] * len(pruned), "x", color="crimson", label="pruned")
    _whole_numbers(axes)
    axes.set(xlabel="trial", ylabel=label(metric, 24), title=wrapped(title, 6.5, 12))
    if points:
        axes.legend(frameon=False)
    save(figure, path)


def importance(shares: dict[str, float], path: Path, title: str = "") -> None:
    """Draw how much of the variance of a search's values each option explains.

    Args:
        shares: the share of each option, in [0, 1], by its name.
    """
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(6.5, 1 + 0.4 * len(names)))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [shares[name] for name in names], color="steelblue")
    axes.set_yticks(range(len(names)), [label(name, 40) for name in names])
    axes.set(xlabel="importance (all sum to 1)", title=wrapped(title, 6.5, 12))
    save(figure, path)


def embedding(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draw points in the plane, coloured by class.

    Args:
        points: (N, 2) coordinates.
        labels: (N,) class indices.
        class_names: K names; those without a point are left out.
    """
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(class_names):
        x, y = points[labels == number].T
        if len(x):
            text = label(f"{name} ({len(x)})", NAME)
            color = colour(number, len(class_names))
            axes.scatter(x, y, s=11, alpha=0.7, linewidths=0, color=color, label=text)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axes.set(xticks=[], yticks=[], title=wrapped(title, 8.5, 12))
    save(figure, path)


# The title of each panel of `curves`, and its metrics with their names in the legend.
PANELS = {
    "training loss": {
        "train/loss_epoch": "total",
        "train/loss_base_epoch": "base branch",
        "train/loss_cross_epoch": "cross branch",
    },
    "top-1 accuracy (%)": {
        "train/acc_epoch": "training, base branch",
        "train/acc_cross_epoch": "training, cross branch",
        "val/acc": "validation",
    },
}


def curves(
    runs: dict[str, dict[str, list[tuple[float, float]]]], path: Path, title: str = ""
) -> None:
    """Draw losses and accuracies by epoch, with a colour for each run and a style for each metric.

    Args:
        runs: the runs by name, each with its metrics by name, each with its points (epoch, value).
            The metrics of `PANELS` are drawn.
    """
    figure = Figure(figsize=(11, 4.4 + 0.22 * len(runs)), layout="constrained")
    figure.suptitle(wrapped(title, 11, 12), fontsize=12)
    lengths = [len(points) for run in runs.values() for points in run.values()]
    few = min(lengths, default=0) < 20  # epochs; a single one has no line, but a marker
    styles = [{"linestyle": line, "marker": marker if few else ""}
              for line, marker in (("-", "o"), ("--", "s"), (":", "^"))]  # fmt: skip
    for axes, (panel, metrics) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        factor = 100 if "%" in panel else 1
        for number, values in enumerate(runs.values()):
            for metric, style in zip(metrics, styles, strict=True):
                if points := values.get(metric):
                    epochs, drawn = np.array(points).T
                    color = colour(number, len(runs))
                    axes.plot(epochs, factor * drawn, color=color, markersize=4, **style)
        for text, style in zip(metrics.values(), styles, strict=True):
            axes.plot([], [], color="black", markersize=4, label=text, **style)
        axes.set(xlabel="epoch", ylabel=panel, title=f"{panel.split(' (')[0]} by epoch")
        _whole_numbers(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=10, framealpha=0.8)
    named = [figure.axes[0].plot([], [], color=colour(n, len(runs)))[0] for n in range(len(runs))]
    names = [label(name, 80) for name in runs]
    figure.legend(named, names, loc="outside lower center", frameon=False, fontsize=10)
    save(figure, path)


def _whole_numbers(axes: Axes) -> None:
    """Put ticks of the horizontal axis at whole numbers only."""
    locator = axes.xaxis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(integer=True, min_n_ticks=1)


def accuracy_curve(curves: dict[str, list[tuple[float, ...]]], path: Path, title: str = "") -> None:
    """Draw top-1 accuracy over the number of training images.

    Args:
        curves: by name of the setting; points of images, accuracy, and its interval, low and high,
            all three in [0, 1].
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        images, mean, low, high = np.array(sorted(points)).T
        images = images * 1.03 ** (number - (len(curves) - 1) / 2)  # bars side by side
        bars = 100 * np.stack([mean - low, high - mean])
        axes.errorbar(images, 100 * mean, bars, fmt="o-", capsize=3, label=label(name, 40),
                      color=colour(number, len(curves)))  # fmt: skip
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set(xscale="log", xlabel="training images", ylabel="top-1, percent, with 95 % interval")
    axes.set_xticks(ticks, [f"{n:,.0f}" for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.4)
    axes.legend(frameon=False)
    axes.set_title(wrapped(title, 7, 12))
    save(figure, path)


def groups(values: dict[str, Sequence[float]], path: Path, title: str = "") -> None:
    """Draw the top-1 accuracy of each network of each group, and the mean of each group.

    Args:
        values: accuracies in [0, 1] by the name of the group.
    """
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    for row, found in enumerate(values.values()):
        percent = 100 * np.asarray(found)
        axes.plot(percent, np.full(len(percent), row), "o", color="steelblue", alpha=0.6)
        axes.plot([percent.mean()] * 2, [row - 0.3, row + 0.3], color="crimson", linewidth=2)
    axes.set_yticks(range(len(values)), [label(name, 40) for name in values])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set(xlabel="top-1, percent: a point a seed, the line their mean")
    axes.set_title(wrapped(title, 7, 12))
    save(figure, path)
