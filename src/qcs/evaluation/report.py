"""What a trained network is worth on a split: numbers, tables and pictures in a folder."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qcs import plots
from qcs.data.datasets import Faces, Transform
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.metrics import bootstrap, calibration, class_scores, confusion_matrix, scores
from qcs.models import QCSNetwork

SHEET_FACES = 40
PICTURES = ("confusion", "reliability", "faces", "hardest")
ROLE_NAMES = ("anchor", "positive", "negative", "negative 2")


def write(
    folder: Path,
    logits: Tensor,
    labels: Tensor,
    manifest: Manifest,
    about: dict[str, Any],
    resamples: int = 2000,
) -> dict[str, Any]:
    """Write numbers (metrics.json, confusion.json, predictions.csv), a page (report.md) and
    pictures (confusion, reliability, faces, hardest); print a table.

    Args:
        folder: made if missing.
        logits: (N, K) in the manifest's order.
        labels: (N,) class indices.
        manifest: the N images.
        about: where the numbers come from (data set, split, checkpoint, what it was selected on).
        resamples: of the bootstrap that gives the 95 % intervals.

    Returns:
        What metrics.json holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, probabilities = manifest.class_names, logits.double().softmax(1)
    matrix = confusion_matrix(logits.argmax(1), labels, len(names))
    found = calibration(probabilities, labels)
    result = about | {"images": len(labels)} | _numbers(matrix, names, resamples)
    result["ece"] = round(float(found["ece"]), 6)
    write_json(folder / "metrics.json", result)
    counts = {"class_names": list(names), "rows_are_true": matrix.tolist()}
    write_json(folder / "confusion.json", counts)
    _predictions(folder / "predictions.csv", probabilities, labels, manifest)
    title = f"{about['dataset']}, {about['split']}: top-1 {100 * result['acc']:.2f} %"
    plots.confusion(matrix, names, folder / "confusion.png", title)
    plots.reliability(found, folder / "reliability.png", title)
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:SHEET_FACES]
    heading = f"{title}; random faces, mistakes in red"
    _sheet(folder / "faces.png", some, logits, labels, manifest, heading)
    hardest = cross_entropy(logits, labels, reduction="none").argsort(descending=True)
    mistakes = hardest[logits.argmax(1)[hardest] != labels[hardest]]
    what = "the worst mistakes" if len(mistakes) else "no mistakes; the faces of highest loss"
    worst = (mistakes if len(mistakes) else hardest)[:SHEET_FACES]
    _sheet(folder / "hardest.png", worst, logits, labels, manifest, f"{title}; {what}")
    page = markdown(result, title)
    (folder / "report.md").write_text(page, encoding="utf-8")
    _print(result, title)
    return result


def _numbers(matrix: Tensor, names: Sequence[str], resamples: int) -> dict[str, Any]:
    """All scores, with their intervals."""
    overall = {k: round(float(v), 6) for k, v in scores(matrix).items()}
    columns = {k: v.tolist() for k, v in class_scores(matrix).items()}
    classes = {n: {k: round(v[i], 6) for k, v in columns.items()} for i, n in enumerate(names)}
    edges, by_class = (
        {k: _rounded(v.tolist()) for k, v in found.items()}
        for found in bootstrap(matrix, resamples)
    )
    intervals: dict[str, Any] = dict(edges)
    intervals["classes"] = {n: {k: v[i] for k, v in by_class.items()} for i, n in enumerate(names)}
    return overall | {"classes": classes, "intervals": intervals, "resamples": resamples}


def _rounded(value: Any) -> Any:
    """Round the numbers of nested lists; what is not a number is null in JSON."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return None if value != value else round(value, 6)


def _predictions(path: Path, probabilities: Tensor, labels: Tensor, manifest: Manifest) -> None:
    """Write a line for each image, in the data set's order."""
    names, predicted = manifest.class_names, probabilities.argmax(1)
    columns = zip(manifest.paths.tolist(), labels, predicted, probabilities.tolist(), strict=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "prediction", "correct", *(f"p_{n}" for n in names)))
        for name, y, p, row in columns:
            shares = [f"{share:.6f}" for share in row]
            writer.writerow((name, names[y], names[p], int(p == y), *shares))


HEADLINE = {"acc": "top-1", "mean_acc": "mean class accuracy", "f1": "macro-F1"}


def percent(value: float, interval: Sequence[float] | None = None) -> str:
    """A share as a percentage, with its interval."""
    if interval is None or None in interval:
        return f"{100 * value:.2f}"
    low, high = interval
    return f"{100 * value:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def markdown(result: dict[str, Any], title: str) -> str:
    """The page for people: numbers with 95 % intervals, where they come from, pictures."""
    intervals = result["intervals"]
    lines = [f"# {title}", "", "| percent | 95 % interval in brackets |", "|---|---|"]
    lines += [f"| {n} | {percent(result[k], intervals[k])} |" for k, n in HEADLINE.items()]
    lines += [f"| expected calibration error | {percent(result['ece'])} |", ""]
    lines += ["| class | faces | precision | recall | F1 |", "|---|---|---|---|---|"]
    for name, row in result["classes"].items():
        edges = intervals["classes"][name]
        cells = (percent(row[k], edges[k]) for k in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {row['support']} | {' | '.join(cells)} |")
    lines += ["", f"{result['images']} images; intervals: bootstrap over images, "
              f"{result['resamples']} resamples.", ""]  # fmt: skip
    skipped = {"classes", "intervals", "resamples", "images", "ece", *HEADLINE}
    lines += [f"- {k}: {v}" for k, v in result.items() if k not in skipped and v]
    lines += ["", *(f"![{n}]({n}.png)" for n in PICTURES), ""]
    return "\n".join(lines)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read as well."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sheet(
    path: Path, rows: Tensor, logits: Tensor, labels: Tensor, manifest: Manifest, heading: str
) -> None:
    """Draw the faces of some rows with their predictions and, where these are wrong, labels."""
    images = [manifest.image(int(row)).resize((128, 128)) for row in rows]
    pixels = torch.stack([plots.to_pixels(image) for image in images])
    probabilities, predicted = logits[rows].softmax(1).max(1)
    names, correct = manifest.class_names, (predicted == labels[rows]).tolist()
    titles = [
        f"{names[p]} {100 * q:.0f} %" + ("" if p == y else f"\nis {names[y]}")
        for p, q, y in zip(predicted, probabilities, labels[rows], strict=True)
    ]
    plots.face_sheet(pixels, titles, path, correct, heading)


def _print(result: dict[str, Any], title: str) -> None:
    table = Table("class", "faces", "precision", "recall", "F1", title=title, min_width=len(title))
    for name, row in result["classes"].items():
        numbers = (f"{100 * row[k]:.2f}" for k in ("precision", "recall", "f1"))
        table.add_row(name, str(row["support"]), *numbers)
    intervals = result["intervals"]
    numbers = [f"{n} {percent(result[k], intervals[k])}" for k, n in HEADLINE.items()]
    table.caption = "\n".join(
        [*numbers, f"ECE {percent(result['ece'])}   ({result['images']} images)"]
    )
    Console().print(table)


def fixed_group(labels: np.ndarray, roles: int, seed: int) -> list[int]:
    """Draw the rows of one group [a, p] or [a, p, n, n2]; what is rare repeats itself."""
    rng = np.random.default_rng(seed)
    classes = np.resize(rng.permutation(np.unique(labels)), roles // 2)
    pairs = [np.resize(rng.permutation(np.flatnonzero(labels == c)), 2) for c in classes]
    return np.concatenate(pairs).tolist()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation for the length of the block, then back where it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def draw_attention(
    path: Path,
    network: QCSNetwork,
    manifest: Manifest,
    transform: Transform,
    seed: int,
    heading: str = "",
) -> bool:
    """Draw one seeded group of a manifest with its attention at each level.

    Returns:
        Whether there is something to draw: the network has cross similarity attention.
    """
    if network.cross is None:
        return False
    rows, names = fixed_group(manifest.labels, network.roles, seed), manifest.class_names
    faces, first = Faces(manifest, transform), next(network.parameters())
    images = torch.stack([faces[row]["images"] for row in rows])
    with evaluating(network):
        out = network.compare(images[None].to(first.device, first.dtype))
    if out.attention is None:  # dot-product attention weighs no tokens
        return False
    shares, predicted = out.base_logits[0].float().cpu().softmax(-1).max(-1)
    titles = [
        f"{role}: {names[manifest.labels[row]]}\nseen as {names[p]} {100 * q:.0f} %"
        for role, row, p, q in zip(ROLE_NAMES, rows, predicted, shares, strict=False)
    ]
    pixels = unnormalised(images, transform)
    plots.attention_sheet(pixels, out.attention[0].float().cpu(), titles, path, heading)
    return True
