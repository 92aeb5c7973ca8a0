"""Compare networks on the same images: means and deviations over seeds, differences, a test."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from qcs.config import escape
from qcs.config.console import console
from qcs.evaluation.files import write_json, write_text
from qcs.evaluation.metrics import paired
from qcs.evaluation.report import HEADLINE, percent

COLUMNS = HEADLINE | {"ece": "ECE"}


class Member(NamedTuple):
    """An evaluated checkpoint."""

    ckpt: str
    result: dict[str, Any]  # of `qcs.evaluation.report.write`
    correct: Tensor  # (N,) bool, for the images in the same order for all checkpoints


def compare(groups: dict[str, list[Member]], resamples: int = 2000) -> list[dict[str, Any]]:
    """Summarise groups of networks, and compare each with the first group.

    Args:
        groups: by name; the members of a group differ, for example, in their seeds.
        resamples: of the interval of a difference.

    Returns:
        A row for each group: "name", "checkpoints", and for each of `COLUMNS` "values", "mean" and
        "sd" (over members, n - 1; None for one member); "against" the first group: difference of
        top-1, interval and p of `qcs.evaluation.metrics.paired` (None for the first itself).
    """
    first = torch.stack([member.correct for member in next(iter(groups.values()))])
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
        correct = torch.stack([member.correct for member in members])
        row["against"] = paired(first, correct, resamples) if rows else None
        rows.append(row)
    return rows


def write(folder: Path, groups: dict[str, list[Member]], context: dict[str, Any]) -> None:
    """Write compare.json and compare.md, and print the table.

    Args:
        folder: made if missing.
        groups: as for `compare`.
        context: "dataset", "split", the number of "images", and "resamples" of the intervals.
    """
    rows = compare(groups, context["resamples"])
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
