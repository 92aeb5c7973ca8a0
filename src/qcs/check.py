"""Look at a data set before training on it: `python -m qcs.check dataset=... dataset.path=...`."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from qcs import plots
from qcs.config.bounds import Natural, Workers
from qcs.config.command import command
from qcs.config.options import instantiate, plain
from qcs.data.inspection import Inspection, inspect
from qcs.data.manifest import SPLITS

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/check.yaml."""

    dataset: dict
    sheet_faces: Natural
    num_workers: Workers
    run_dir: str


SHOWN = 5  # examples of a fault on the screen; check.json has all


def check(config: dict[str, Any]) -> Inspection:
    """Print the report and write check.json and faces.png into the run's folder.

    Args:
        config: plain and checked, of conf/check.yaml.
    """
    manifest, folder = instantiate(config["dataset"]), Path(config["run_dir"])
    found = inspect(manifest, config["num_workers"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_content(found), indent=1, ensure_ascii=False)
    (folder / "check.json").write_text(text + "\n", encoding="utf-8")
    _sheet(found, folder / "faces.png", config["sheet_faces"])
    _print(found)
    if found.leaked():
        _clean(found, folder / "clean.csv")
    log.info("report and contact sheet in %s", folder)
    return found


def _clean(found: Inspection, path: Path) -> None:
    """Write the manifest without what val or test also hold, and say how to train on it."""
    manifest, keep = found.manifest, np.ones(len(found.manifest), dtype=bool)
    keep[[*found.leaked(), *found.unreadable]] = False
    if manifest.boxes is not None or manifest.targets is not None:
        log.info("clean.csv is not written: face boxes and soft labels do not fit into it")
        return
    manifest.select(keep).to_csv(path)
    names = ",".join(manifest.class_names)
    log.info(
        "%d images left out in %s; train on the rest with dataset=csv dataset.path=%s "
        "dataset.root=%s dataset.class_names=[%s]",
        int((~keep).sum()),
        path,
        path,
        manifest.root,
        names,
    )


def _content(found: Inspection) -> dict[str, Any]:
    manifest = found.manifest
    rows = {"duplicates_across_splits": found.across, "duplicates_with_other_labels":
            found.contradicting, "duplicates": found.groups}  # fmt: skip
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
        **{name: [[_named(found, r) for r in g] for g in groups] for name, groups in rows.items()},
    }


def _named(found: Inspection, row: int) -> str:
    manifest = found.manifest
    name = manifest.class_names[manifest.labels[row]]
    return f"{manifest.paths[row]} ({manifest.splits[row]}, {name})"


def _print(found: Inspection) -> None:
    console, manifest = Console(), found.manifest
    table = Table("class", *SPLITS, title=f"{manifest.root.name}: {len(manifest)} images")
    for name, row in zip(manifest.class_names, found.counts.T, strict=True):
        table.add_row(name, *map(str, row))
    table.add_section()
    table.add_row("all", *map(str, found.counts.sum(1)))
    console.print(table)
    common = ", ".join(f"{w}x{h}: {n}" for (w, h), n in found.sizes.most_common(SHOWN))
    console.print(f"{len(found.sizes)} sizes, the most frequent: {common}")
    within = len(found.groups) - len(found.across)
    console.print(f"{within} images appear more than once in one split")
    for sentence in found.unreadable.values():
        console.print(f"[red]{sentence}", soft_wrap=True)
    for group in found.across[:SHOWN]:
        console.print("equal: " + ", ".join(_named(found, r) for r in group), soft_wrap=True)
    for sentence in found.problems() or ["no faults found"]:
        console.print(f"[bold]{sentence}", soft_wrap=True)


def _sheet(found: Inspection, path: Path, number: int) -> None:
    """Random images (seeded) of each class, a row a class."""
    manifest, rng, rows = found.manifest, np.random.default_rng(0), []
    for label in range(len(manifest.class_names)):
        candidates = [r for r in np.flatnonzero(manifest.labels == label) if r not in
                      found.unreadable]  # fmt: skip
        rows += rng.permutation(candidates)[:number].astype(int).tolist()
    images = [plots.to_pixels(manifest.image(row).resize((128, 128))) for row in rows]
    names = [f"{manifest.class_names[manifest.labels[r]]}\n{manifest.splits[r]}" for r in rows]
    heading = f"{manifest.root.name}: random images of each class"
    if images:
        plots.face_sheet(torch.stack(images), names, path, [True] * len(rows), heading)


@command("check")
def main(cfg: DictConfig) -> None:
    """Compose, check, look."""
    check(plain(cfg, Settings))


if __name__ == "__main__":
    main()
