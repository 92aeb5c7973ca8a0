"""Compare networks on the same images: means and deviations over seeds, differences, a test."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from qcs.config import escape
from qcs.config.console import console
from qcs.evaluation.files import write_json, write_text
from qcs.evaluation.intervals import LEVEL, paired
from qcs.evaluation.report import HEADLINE, percent

COLUMNS = HEADLINE | {"ece": "ECE"}


class Member(NamedTuple):
    """An evaluated checkpoint."""

    ckpt: str
    result: dict[str, Any]  # of `qcs.evaluation.report.write`
    correct: Tensor  # (N,) bool, for the images in the same order for all checkpoints


def compare(
    groups: dict[str, list[Member]], resamples: int = 2000, by_name: bool = False
) -> list[dict[str, Any]]:
    """Summarise groups of networks, and compare each with the first group.

    Args:
        groups: by name; the members of a group differ, for example, in their seeds.
        resamples: of the interval of a difference.
        by_name: compare the members whose names are in both groups alone, as the seeds of a study,
            so that a seed that one of them lacks shifts no difference.

    Returns:
        A row for each group: "name", "checkpoints", and for each of `COLUMNS` "values", "mean" and
        "sd" (over members, n - 1; None for one member); "against" the first group: difference of
        top-1, interval and p of `qcs.evaluation.intervals.paired` (None for the first itself, and
        where no names are shared).
    """
    base = next(iter(groups.values()))
    rows: list[dict[str, Any]] = []
    for name, members in groups.items():
        row: dict[str, Any] = {"name": name, "checkpoints": [m.ckpt for m in members]}
        for key in COLUMNS:
            values = torch.tensor([m.result[key] for m in members], dtype=torch.float64)
            spread = round(values.std().item(), 6) if len(values) > 1 else None
            mean = round(values.mean().item(), 6)
            row[key] = {"values": values.tolist(), "mean": mean, "sd": spread}
        if len(members) == 1:
            row["acc"]["interval"] = members[0].result["intervals"]["acc"]
        shared = {m.ckpt for m in base} & {m.ckpt for m in members}
        before, after = (
            [m.correct for m in side if not by_name or m.ckpt in shared] for side in (base, members)
        )
        row["against"] = None
        if rows and before and after:
            row["against"] = paired(torch.stack(before), torch.stack(after), resamples)
        rows.append(row)
    return rows


def over_seeds(first: Tensor, second: Tensor) -> dict[str, Any]:
    """Compare the top-1 of two settings for other seeds and other images than those at hand.

    Each image of each seed has a difference d. Seeds and images are both taken as random samples,
    so that d is a mean, an effect of the seed, an effect of the image and a rest, of which the
    analysis of variance tells the sizes (Searle et al. 1992, Variance Components, chapter 4). The
    interval of the mean is Student's, with the degrees of freedom of Satterthwaite (1946).

    Args:
        first: (S, N) bool, whether the network of each of S seeds is right on each of N images.
        second: (S, N) bool, the same for another setting with the same seeds.

    Returns:
        "difference", second less first; "by_seed", S differences; "sd" of them; "interval" of the
        difference, low and high. The latter two are None for a single seed, the interval also
        where no image differs.

    Examples:
        >>> import torch
        >>> from qcs.evaluation.compare import over_seeds
        >>> right = torch.arange(100) < torch.tensor([[70], [72], [71]])
        >>> found = over_seeds(right, torch.arange(100) < torch.tensor([[74], [75], [76]]))
        >>> round(found["difference"], 3), [round(x, 3) for x in found["interval"]]
        (0.04, [0.006, 0.074])
    """
    d = second.double() - first.double()
    (seeds, images), mean = d.shape, d.mean()
    found: dict[str, Any] = {"difference": mean.item(), "by_seed": d.mean(1).tolist()}
    if seeds == 1:
        return found | {"sd": None, "interval": None}
    by_seed, by_image = d.mean(1), d.mean(0)
    rest = (d - by_seed[:, None] - by_image + mean).square().sum() / (seeds - 1) / (images - 1)
    # Parts of the variance of the mean; both hold the rest's, which counts once.
    of_images, of_seeds, rest = by_image.var() / images, by_seed.var() / seeds, rest / d.numel()
    if of_seeds < rest:  # nothing is seen of the seeds
        of_seeds = rest = torch.tensor(0.0)
    variance = (of_images + of_seeds - rest).item()
    found["sd"] = by_seed.std().item()
    if variance == 0:
        return found | {"interval": None}
    squares = of_images**2 / (images - 1) + of_seeds**2 / (seeds - 1)
    half = _student(variance**2 / squares.item()) * variance**0.5
    return found | {"interval": [found["difference"] - half, found["difference"] + half]}


def _student(freedom: float) -> float:
    """How far from 0 the share `LEVEL` of Student's distribution reaches.

    With t = sqrt(freedom) tan(angle), the density of the angle is a power of its cosine.
    """
    edges, width = np.linspace(0, np.pi / 2, 20_001, retstep=True)
    mass = np.cumsum(np.cos(edges[:-1] + width / 2) ** (freedom - 1))
    return float(freedom**0.5 * np.tan(np.interp(LEVEL, mass / mass[-1], edges[1:])))


def write(
    folder: Path, groups: dict[str, list[Member]], context: dict[str, Any], by_name: bool = False
) -> None:
    """Write compare.json and compare.md, and print the table.

    Args:
        context: "dataset", "split", the number of "images", and "resamples" of the intervals.
        by_name: see `compare`.
    """
    rows = compare(groups, context["resamples"], by_name)
    write_json(folder / "compare.json", context | {"groups": rows})
    head = ["", "seeds", *COLUMNS.values(), f"top-1 - {rows[0]['name']}", "p"]
    title = f"{context['dataset']}, {context['split']}: {context['images']} images"
    lines = [f"# {escape.markdown(title)}", "", _line(head), _line(["---"] * len(head))]
    lines += [*(_line(_cells(row)) for row in rows), ""]
    lines.append(
        "Percent: mean and standard deviation over seeds, or one network's value with its 95 % "
        "bootstrap interval (Wilson's where all images are right, or all wrong). The difference is "
        "of the same images: 95 % bootstrap interval over images, and p of the paired sign-flip "
        "test (McNemar's for single networks); both take the networks as given and say nothing of "
        "other seeds."
    )
    for name, members in groups.items():
        files = (f"- {escape.markdown(member.ckpt)}" for member in members)
        lines += ["", f"## {escape.markdown(name)}", "", *files]
    write_text(folder / "compare.md", "\n".join(lines) + "\n")
    table = Table(*map(escape.terminal, head), title=escape.terminal(title))
    for row in rows:
        table.add_row(*map(escape.terminal, _cells(row, brief=True)))
    console().print(table)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(escape.markdown, cells))} |"


def _cells(row: dict[str, Any], brief: bool = False) -> list[str]:
    """The texts of a row; a `brief` one, for the terminal, has no intervals."""
    cells = [row["name"], str(len(row["checkpoints"]))]
    for key in COLUMNS:
        value = row[key]
        if value["sd"] is None:
            cells.append(percent(value["mean"], None if brief else value.get("interval")))
        else:
            cells.append(f"{percent(value['mean'])} ± {percent(value['sd'])}")
    against = row["against"]
    if against is None:
        return [*cells, "", ""]
    difference = percent(against["difference"], None if brief else against["interval"])
    p = against["p"]
    return [*cells, difference, f"{p:.4f}" if p >= 0.0002 else "< 0.0002"]
