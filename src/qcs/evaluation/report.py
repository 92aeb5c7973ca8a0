"""The report on a trained network: numbers, tables and pictures of one split in a folder."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from qcs import plots
from qcs.config import escape
from qcs.config.console import console
from qcs.data.manifest import Manifest
from qcs.evaluation.files import write_csv, write_json, write_text
from qcs.evaluation.intervals import bootstrap, class_intervals
from qcs.evaluation.metrics import calibration, check_finite, class_scores, confusion_matrix, scores

log = logging.getLogger(__name__)

SHEET_FACES = 40
PICTURES = ("confusion", "reliability", "faces", "hardest")


def write(
    folder: Path,
    logits: Tensor,
    labels: Tensor,
    manifest: Manifest,
    context: dict[str, Any],
    resamples: int = 2000,
    picture_format: plots.Format = "png",
) -> dict[str, Any]:
    """Write a report into a folder, and print a table.

    Numbers are in metrics.json, confusion.json and predictions.csv; the pictures are confusion,
    reliability, faces and hardest; report.md shows all of them. The numbers are written first. A
    picture that cannot be drawn is logged as an error and left out.

    Args:
        logits: (N, K) in the manifest's order; -inf rules a class out.
        labels: (N,) class indices.
        context: where the numbers come from: "dataset", "split", and further entries such as the
            checkpoint and what it was selected on.
        resamples: of the bootstrap, which gives the 95 % intervals of means over classes.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: logits are not finite, there is less than one resample, or a file cannot be
            written.
    """
    names, probabilities = manifest.class_names, logits.double().softmax(1)
    check_finite(probabilities, manifest)
    matrix = confusion_matrix(logits.argmax(1), labels, len(names))
    found = calibration(probabilities, labels)
    result = context | {"images": len(labels)} | _numbers(matrix, names, resamples)
    result["ece"] = round(float(found["ece"]), 6)
    write_json(folder / "metrics.json", result)
    counts = {"class_names": list(names), "rows_are_true": matrix.tolist()}
    write_json(folder / "confusion.json", counts)
    _predictions(folder / "predictions.csv", probabilities, labels, manifest)
    title = f"{context['dataset']}, {context['split']}: top-1 {100 * result['acc']:.2f} %"
    _print(result, title)
    sheets = _sheets(logits, labels, manifest, title)
    pictures = {
        "confusion": partial(plots.confusion, matrix, names, title=title),
        "reliability": partial(plots.reliability, found, title=title),
    } | {name: partial(_sheet, *parts) for name, parts in sheets.items()}
    paths = [folder / f"{name}.{picture_format}" for name in pictures]
    drawn = [p for p, draw in zip(paths, pictures.values(), strict=True) if try_to_draw(draw, p)]
    write_text(folder / "report.md", markdown(result, title, [p.name for p in drawn]))
    return result


def try_to_draw(draw: Callable[[Path], Any], path: Path) -> bool:
    """Draw a picture; an exception is only logged, so that it ends no run and costs no number.

    Args:
        draw: draws into a path, or returns False where there is nothing to draw.

    Returns:
        Whether the picture is drawn.
    """
    try:
        return draw(path) is not False
    except Exception:
        log.exception("%s could not be drawn; the numbers are not affected", path)
        return False


def _numbers(matrix: Tensor, names: Sequence[str], resamples: int) -> dict[str, Any]:
    """All scores, with their intervals."""
    overall = {k: round(float(v), 6) for k, v in scores(matrix).items()}
    columns = {k: v.tolist() for k, v in class_scores(matrix).items()}
    classes = {n: {k: round(v[i], 6) for k, v in columns.items()} for i, n in enumerate(names)}
    edges, by_class = (
        {k: _rounded(v.tolist()) for k, v in found.items()}
        for found in (bootstrap(matrix, resamples), class_intervals(matrix))
    )
    intervals: dict[str, Any] = dict(edges)
    intervals["classes"] = {n: {k: v[i] for k, v in by_class.items()} for i, n in enumerate(names)}
    return overall | {"classes": classes, "intervals": intervals, "resamples": resamples}


def _rounded(value: Any) -> Any:
    """Round the numbers of nested lists; nan, which stands for no interval, becomes None."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return None if value != value else round(value, 6)


def _predictions(path: Path, probabilities: Tensor, labels: Tensor, manifest: Manifest) -> None:
    """Write a line for each image, in the order of the data set."""
    names, predicted = manifest.class_names, probabilities.argmax(1).tolist()
    columns = (manifest.paths.tolist(), labels.tolist(), predicted, probabilities.tolist())
    rows = (
        (name, names[y], names[p], int(p == y), *(f"{share:.6f}" for share in row))
        for name, y, p, row in zip(*columns, strict=True)
    )
    write_csv(path, ("path", "label", "prediction", "correct", *(f"p_{n}" for n in names)), rows)


HEADLINE = {"acc": "top-1", "mean_acc": "mean class accuracy", "f1": "macro-F1"}


def percent(value: float, interval: Sequence[float] | None = None) -> str:
    """Return a share as a percentage, with its interval where there is one."""
    if interval is None or None in interval:
        return f"{100 * value:.2f}"
    low, high = interval
    return f"{100 * value:.2f} ({100 * low:.2f} to {100 * high:.2f})"


INTERVALS = (
    "Intervals of 95 %: Wilson's score interval for precision and recall of a class, and for its "
    "F1 by way of the share of hits among the images of the class or predicted as it; for top-1, "
    "mean class accuracy and macro-F1 a bootstrap over images. Where all images are right, or all "
    "wrong, a bootstrap says nothing: top-1 then has Wilson's interval and the means have none."
)


def markdown(result: dict[str, Any], title: str, pictures: Sequence[str]) -> str:
    """Return report.md: the numbers with their intervals, the context, and the pictures."""
    intervals, text = result["intervals"], escape.markdown
    lines = [f"# {text(title)}", "", "| percent | 95 % interval in brackets |", "|---|---|"]
    lines += [f"| {n} | {percent(result[k], intervals[k])} |" for k, n in HEADLINE.items()]
    lines += [f"| expected calibration error | {percent(result['ece'])} |", ""]
    lines += ["| class | faces | precision | recall | F1 |", "|---|---|---|---|---|"]
    for name, row in result["classes"].items():
        edges = intervals["classes"][name]
        cells = (percent(row[k], edges[k]) for k in ("precision", "recall", "f1"))
        lines.append(f"| {text(name)} | {row['support']} | {' | '.join(cells)} |")
    lines += ["", f"{result['images']} images; {result['resamples']} resamples. {INTERVALS}", ""]
    skipped = {"classes", "intervals", "resamples", "images", "ece", *HEADLINE}
    lines += [f"- {k}: {text(v)}" for k, v in result.items() if k not in skipped and v]
    lines += ["", *(f"![{name.split('.')[0]}]({name})" for name in pictures), ""]
    return "\n".join(lines)


def _sheets(logits: Tensor, labels: Tensor, manifest: Manifest, title: str) -> dict[str, tuple]:
    """The arguments of `_sheet` for random faces and for those of the highest loss."""
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:SHEET_FACES]
    loss = cross_entropy(logits, labels, reduction="none")
    hardest = loss.argsort(descending=True)
    mistakes = hardest[logits.argmax(1)[hardest] != labels[hardest]]
    what = "the mistakes of highest loss" if len(mistakes) else "no mistakes; the highest losses"
    worst = (mistakes if len(mistakes) else hardest)[:SHEET_FACES]
    return {
        "faces": (some, logits, labels, manifest, f"{title}; random faces, mistakes in red", None),
        "hardest": (worst, logits, labels, manifest, f"{title}; {what}", loss),
    }


def _sheet(
    rows: Tensor,
    logits: Tensor,
    labels: Tensor,
    manifest: Manifest,
    heading: str,
    loss: Tensor | None,
    path: Path,
) -> None:
    """Draw the faces of some rows.

    The title of a face is its prediction, its label where the prediction is wrong, and its loss
    where `loss` (N,) is given.
    """
    images = [manifest.image(int(row)).resize((128, 128)) for row in rows]
    pixels = torch.stack([plots.to_pixels(image) for image in images])
    probabilities, predicted = logits[rows].softmax(1).max(1)
    correct = (predicted == labels[rows]).tolist()
    names = [escape.terminal(name) for name in manifest.class_names]
    titles = [
        f"{names[p]} {100 * q:.0f} %" + ("" if p == y else f"\nis {names[y]}")
        for p, q, y in zip(predicted, probabilities, labels[rows], strict=True)
    ]
    if loss is not None:
        titles = [f"{t}\nloss {x:.2f}" for t, x in zip(titles, loss[rows], strict=True)]
    plots.face_sheet(pixels, titles, path, correct, heading)


def _print(result: dict[str, Any], title: str) -> None:
    title = escape.terminal(title)
    table = Table("class", "faces", "precision", "recall", "F1", title=title, min_width=len(title))
    for name, row in result["classes"].items():
        numbers = (f"{100 * row[k]:.2f}" for k in ("precision", "recall", "f1"))
        table.add_row(escape.terminal(name), str(row["support"]), *numbers)
    intervals = result["intervals"]
    headline = [f"{n} {percent(result[k], intervals[k])}" for k, n in HEADLINE.items()]
    table.caption = "\n".join(
        [*headline, f"ECE {percent(result['ece'])}   ({result['images']} images)"]
    )
    console().print(table)
