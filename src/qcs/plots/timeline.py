"""A picture of who showed which expression when."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from qcs.plots.figure import colour, save
from qcs.plots.text import NAME, label, wrapped

WIDTH = 11.0  # inches
# Seconds between ticks.
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
MOST_TICKS = 12


def clock(seconds: float) -> str:
    """Write a time after the film's start as 1:02.5, or as 1:01:02.5 after an hour."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def timeline(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float]]]],
    class_names: Sequence[str],
    path: Path,
    title: str = "",
) -> None:
    """Draw a row for each person, with a colour for each expression.

    Args:
        rows: the name of each person, and its spans: class, start and end in seconds.
        class_names: K names; those that nobody shows are left out of the legend.
    """
    colours = {name: colour(n, len(class_names)) for n, name in enumerate(class_names)}
    shown: set[str] = set()
    figure = Figure(figsize=(WIDTH, 1.3 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for row, (_, spans) in enumerate(rows):
        for name in class_names:
            bars = [(start, end - start) for found, start, end in spans if found == name]
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colours[name])
            shown |= {name} if bars else set()
    axes.set_yticks(range(len(rows)), [label(name, NAME) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    end = max((end for _, spans in rows for *_, end in spans), default=1.0)
    step = next((step for step in STEPS if end / step <= MOST_TICKS), end / MOST_TICKS)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: clock(t).removesuffix(".0")))
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    axes.set(xlabel="time, minutes:seconds", title=wrapped(title, WIDTH, 12))
    axes.set_xlim(0, 1.01 * end or 1)
    handles = [Patch(color=colours[name], label=label(name, NAME)) for name in class_names
               if name in shown]  # fmt: skip
    axes.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)
