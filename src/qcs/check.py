"""Look at a data set before training on it: `python -m qcs.check dataset=... dataset.path=...`."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.table import Table
from typing_extensions import TypedDict

from qcs import plots
from qcs.config.bounds import Natural, Workers
from qcs.config.command import command
from qcs.config.console import console
from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.config.hints import command_line
from qcs.config.options import instantiate, resolve
from qcs.data.folders import is_text
from qcs.data.inspection import Inspection, inspect
from qcs.data.manifest import SPLITS

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/check.yaml."""

    dataset: dict
    sheet_faces: Natural
    num_workers: Workers
    run_dir: str


SHOWN = 5  # examples of a fault that are printed; check.json has all of them


def check(config: dict[str, Any]) -> Inspection:
    """Print the report and write check.json and faces.png into the run's folder."""
    manifest, folder = instantiate(config["dataset"]), Path(config["run_dir"])
    found = inspect(manifest, config["num_workers"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_content(found), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A byte of a name that is not UTF-8 becomes an escape, as Python's json reads and writes it.
    (folder / "check.json").write_bytes(text.encode("utf-8", "backslashreplace"))
    _sheet(found, folder / "faces.png", config["sheet_faces"])
    _print(found)
    if found.leaked():
        _clean(found, folder / "clean.csv")
    log.info("report and contact sheet in %s", folder)
    return found


def _clean(found: Inspection, path: Path) -> None:
    """Write the manifest without the images that are in val or test too; say how to train on it."""
    manifest, keep = found.manifest, np.ones(len(found.manifest), dtype=bool)
    keep[[*found.leaked(), *found.unreadable]] = False
    if manifest.boxes is not None or manifest.targets is not None:
        log.info("clean.csv is not written: face boxes and soft labels do not fit into it")
        return
    for row in np.flatnonzero(keep):
        if not is_text(manifest.paths[row]):
            name = terminal(manifest.paths[row])
            log.warning("left out of clean.csv, as its name is not UTF-8: %s", name)
            keep[row] = False
    manifest.select(keep).to_csv(path)
    options = {
        "dataset": "csv",
        "dataset.path": str(path),
        "dataset.root": str(manifest.root),
        "dataset.class_names": list(manifest.class_names),
    }
    log.info(
        "%d images left out in %s; train on the rest with: %s",
        int((~keep).sum()),
        terminal(path),
        terminal(command_line("qcs.train", options)),
    )


def _content(found: Inspection) -> dict[str, Any]:
    manifest = found.manifest

    def named(groups: list[list[int]]) -> list[list[str]]:
        return [[_named(found, row) for row in group] for group in groups]

    return {
        "images": len(manifest),
        "counts": {
            split: dict(zip(manifest.class_names, row.tolist(), strict=True))
            for split, row in zip(SPLITS, found.counts, strict=True)
        },
        "sizes": {f"{w}x{h}": n for (w, h), n in found.sizes.most_common()},
        "unreadable": list(found.unreadable.values()),
        "small_classes": found.small_classes,
        "problems": found.problems(),
        "duplicates_across_splits": named(found.across),
        "duplicates_with_other_labels": named(found.contradicting),
        "duplicates": named(found.groups),
    }


def _named(found: Inspection, row: int) -> str:
    manifest = found.manifest
    name = manifest.class_names[manifest.labels[row]]
    return f"{manifest.paths[row]} ({manifest.splits[row]}, {name})"


def _print(found: Inspection) -> None:
    """Print the report."""
    screen, manifest = console(), found.manifest
    title = terminal(f"{manifest.root.name}: {len(manifest)} images")
    table = Table("class", *SPLITS, title=title)
    for name, row in zip(manifest.class_names, found.counts.T, strict=True):
        table.add_row(terminal(name), *map(str, row))
    table.add_section()
    table.add_row("all", *map(str, found.counts.sum(1)))
    screen.print(table)
    common = ", ".join(f"{w}x{h}: {n}" for (w, h), n in found.sizes.most_common(SHOWN))
    screen.print(f"{len(found.sizes)} sizes, the most frequent: {common}")
    within = len(found.groups) - len(found.across)
    screen.print(f"{within} images appear more than once in one split")
    for sentence in found.unreadable.values():
        screen.print(terminal(sentence), style="red", soft_wrap=True)
    for group in found.across[:SHOWN]:
        equal = ", ".join(_named(found, row) for row in group)
        screen.print(terminal(f"equal: {equal}"), soft_wrap=True)
    for sentence in found.problems() or ["no faults found"]:
        screen.print(terminal(sentence), style="bold", soft_wrap=True)


def _sheet(found: Inspection, path: Path, number: int) -> None:
    """Draw a sheet of random images, always the same ones: a row for each class."""
    manifest, rng = found.manifest, np.random.default_rng(0)
    images, names = [], []
    for label, name in enumerate(manifest.class_names):
        rows = np.flatnonzero(manifest.labels == label)
        candidates = [row for row in rows if row not in found.unreadable]
        for row in rng.permutation(candidates)[:number].astype(int).tolist():
            try:
                images.append(plots.to_pixels(manifest.image(row).resize((128, 128))))
            except UserError as error:  # it has gone since it was read
                log.warning("left out of %s: %s", path.name, error)
                continue
            names.append(f"{terminal(name)}\n{manifest.splits[row]}")
    heading = terminal(f"{manifest.root.name}: random images of each class")
    if images:
        plots.face_sheet(torch.stack(images), names, path, [True] * len(images), heading)


@command("check")
def main(cfg: DictConfig) -> None:
    """Compose, check, look."""
    check(resolve(cfg, Settings))


if __name__ == "__main__":
    main()
