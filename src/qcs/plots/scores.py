"""Pictures of numbers: scores, curves, searches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from qcs.plots.figure import save
from qcs.plots.text import label, wrapped

NAME = 20  # ems of a class name beside a picture


def confusion(matrix: Tensor, class_names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix as percentages of each true class, with the counts' class sizes.

    A class without a face has an empty row.

    Args:
        matrix: (K, K) counts, rows are true classes.
        class_names: K names.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
    """
    number, total = len(class_names), matrix.sum(1, keepdim=True)
    share = (100 * matrix.double() / total).numpy()  # nan in an empty row
    cell = min(0.75, 30 / number)  # inches
    size = 1.6 + cell * number
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape) if cell > 0.4 else ():  # or they cannot be read
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


def reliability(found: dict[str, Tensor], path: Path, title: str = "") -> None:
    """Draw accuracy by confidence, the gap to what was promised, and how many faces are where.

    Args:
        found: of `qcs.evaluation.metrics.calibration`.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture, with the calibration error below it.
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
    least: bool = False,
    metric: str = "value",
) -> None:
    """Draw the value of each trial (None: pruned) and the best one so far.

    Args:
        points: number and value of each trial.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
        least: whether the least value is the best.
        metric: the name of the values.
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
    axes.set(xlabel="trial", ylabel=label(metric, 24), title=wrapped(title, 6.5, 12))
    if points:
        axes.legend(frameon=False)
    save(figure, path)


def importance(shares: dict[str, float], path: Path, title: str = "") -> None:
    """Draw how much of the spread of the values each option explains.

    Args:
        shares: in [0, 1] by option.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
    """
    names = sorted(shares, key=shares.get)
    figure = Figure(figsize=(6.5, 1 + 0.4 * len(names)))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [shares[name] for name in names], color="steelblue")
    axes.set_yticks(range(len(names)), [label(name, 40) for name in names])
    axes.set(xlabel="importance (all sum to 1)", title=wrapped(title, 6.5, 12))
    save(figure, path)


def embedding(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draw points of the plane, coloured by class.

    Args:
        points: (N, 2).
        labels: (N,) class indices.
        class_names: K names; those without a point are left out.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
    """
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(class_names):
        x, y = points[labels == number].T
        if len(x):
            text = label(f"{name} ({len(x)})", NAME)
            color = _colour(number, len(class_names))
            axes.scatter(x, y, s=11, alpha=0.7, linewidths=0, color=color, label=text)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axes.set(xticks=[], yticks=[], title=wrapped(title, 8.5, 12))
    save(figure, path)


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
    """Draw losses and accuracies by epoch, a colour for each run, a style for each metric.

    Args:
        runs: by name, and by metric (those of `PANELS` are drawn), points (epoch, value).
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
    """
    figure = Figure(figsize=(11, 4.4 + 0.22 * len(runs)), layout="constrained")
    figure.suptitle(wrapped(title, 11, 12), fontsize=12)
    styles = ("-", "--", ":")
    for axes, (panel, metrics) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        factor = 100 if "%" in panel else 1
        for number, values in enumerate(runs.values()):
            for metric, style in zip(metrics, styles, strict=True):
                if points := values.get(metric):
                    epochs, drawn = np.array(points).T
                    marker = "o" if len(points) < 20 else None  # one epoch has no line
                    axes.plot(epochs, factor * drawn, style, color=_colour(number, len(runs)),
                              marker=marker, markersize=4)  # fmt: skip
        for text, style in zip(metrics.values(), styles, strict=True):
            axes.plot([], [], style, color="black", label=text)
        axes.set(xlabel="epoch", ylabel=panel, title=f"{panel.split(' (')[0]} by epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=10, framealpha=0.8)
    named = [figure.axes[0].plot([], [], color=_colour(n, len(runs)))[0] for n in range(len(runs))]
    names = [label(name, 80) for name in runs]
    figure.legend(named, names, loc="outside lower center", frameon=False, fontsize=10)
    save(figure, path)


def _colour(number: int, total: int) -> str | tuple[float, ...]:
    """One of ten clear colours, or of as many as are needed."""
    return f"C{number}" if total <= 10 else colormaps["turbo"](number / (total - 1))


def groups(values: dict[str, Sequence[float]], path: Path, title: str = "") -> None:
    """Draw the top-1 of each network of each group, and each group's mean.

    Args:
        values: shares in [0, 1] by the name of the group.
        path: file to write; its suffix is the format, png, pdf or svg.
        title: above the picture.
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
