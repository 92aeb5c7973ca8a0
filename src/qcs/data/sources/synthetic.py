"""A synthetic data set of drawn faces, made once into a cache folder.

The faces are drawn by code (`qcs.data.synthetic`): seven expressions in the classes and the order
of RAF-DB, with much that is not expression. The set lets the project train and test without
licensed photographs. A number measured on it says nothing about real faces.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from PIL import Image

from qcs.config.bounds import Pixels, Seed
from qcs.config.errors import UserError
from qcs.data import csv_format
from qcs.data.cache import cache_folder
from qcs.data.folders import expanded
from qcs.data.manifest import Manifest
from qcs.data.synthetic import EXPRESSIONS, draw_face

__all__ = ["EXPRESSIONS", "VERSION", "draw_face", "make", "read"]

VERSION = 1  # raise it whenever a change of the drawing code changes the images
_FIRST_IDENTITY = {"train": 0, "val": 1_000_000, "test": 2_000_000}
Identities = Annotated[int, Interval(ge=0, le=1_000_000)]
_IMAGES_PER_WORKER = 150  # fewer are drawn sooner than a process starts
_README = """\
SYNTHETIC FACES, drawn by code (qcs.data.synthetic, version {version}, seed {seed}). They are
illustrations, not photographs, and show no real person. The label is the expression that was
drawn. Results on them say nothing about the recognition of expressions in real faces.
"""

_log = logging.getLogger(__name__)


def make(
    folder: str | Path,
    *,
    seed: int = 0,
    size: int = 96,
    train: int = 400,
    val: int = 60,
    test: int = 100,
    workers: int | None = None,
) -> Path:
    """Draws the synthetic set into a folder, unless it is there already.

    Every identity appears once with every expression and in one split only. The images are
    drawn in a temporary folder beside `folder` which is renamed at the end, so that a set is
    either whole or absent. Worker processes are spawned: a script that calls this for more than
    a few hundred images needs the usual `if __name__ == "__main__":`, or `workers=1`.

    Args:
        folder: where to put images/<split>/*.jpg, manifest.csv and README.txt.
        seed: seed of the drawings, 0 or more.
        size: side of the images in pixels.
        train, val, test: images per class.
        workers: most processes to draw with; by default one per CPU core.
    Raises:
        UserError: the folder holds something that is not a whole set, or cannot be written.
    """
    folder = Path(folder)
    try:
        return _made(folder, seed, size, {"train": train, "val": val, "test": test}, workers)
    except OSError as error:
        raise UserError(
            f"cannot draw faces into {folder} ({error.strerror or error}); make room or allow it, "
            "or give another folder as dataset.path=..."
        ) from error


def _made(folder: Path, seed: int, size: int, counts: dict[str, int], workers: int | None) -> Path:
    if (folder / "manifest.csv").is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and has no manifest.csv; choose another one")
    _log.info("drawing synthetic faces (not photographs) into %s", folder)
    rows = _rows(counts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}-{uuid.uuid4().hex}.part"
    try:
        _fill(draft, rows, seed, size, workers or os.cpu_count() or 1)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def read(
    path: str | Path | None = None,
    *,
    seed: Seed = 0,
    size: Pixels = 96,
    train: Identities = 400,
    val: Identities = 60,
    test: Identities = 100,
) -> Manifest:
    """Reads the synthetic set and draws it first where it is missing.

    Args:
        path: folder of the set; by default one in the user's cache folder whose name holds
            all the other arguments and the version of the drawing code.
        seed, size, train, val, test: as for `make`, and so are the errors.
    """
    if path is None:
        path = cached(seed, size, train, val, test)
    folder = make(expanded(path), seed=seed, size=size, train=train, val=val, test=test)
    return Manifest.from_csv(folder / "manifest.csv", class_names=EXPRESSIONS)


def cached(seed: int = 0, size: int = 96, train: int = 400, val: int = 60, test: int = 100) -> Path:
    """The folder in the user's cache folder for a set of `read` without a path."""
    return cache_folder() / f"synthetic-v{VERSION}-s{seed}-{size}px-{train}-{val}-{test}"


def _rows(counts: dict[str, int]) -> list[tuple[str, str, str, int]]:
    """Path, label, split and identity of every image."""
    return [
        (f"images/{split}/{label}-{identity:07d}.jpg", label, split, identity)
        for split, count in counts.items()
        for label in EXPRESSIONS
        for identity in range(_FIRST_IDENTITY[split], _FIRST_IDENTITY[split] + count)
    ]


def _draw(job: tuple[Path, str, int, int, int]) -> None:
    path, label, identity, size, seed = job
    sample = EXPRESSIONS.index(label)  # only a number for the generators, which mix it well
    face = draw_face(identity, sample, label, size=size, seed=seed)
    Image.fromarray(face).save(path, quality=92)


def _fill(draft: Path, rows: list, seed: int, size: int, workers: int) -> None:
    for split in _FIRST_IDENTITY:
        (draft / "images" / split).mkdir(parents=True)
    jobs = [(draft / path, label, identity, size, seed) for path, label, _, identity in rows]
    workers = max(1, min(workers, len(jobs) // _IMAGES_PER_WORKER))
    if workers == 1:
        for job in jobs:
            _draw(job)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_draw, jobs, chunksize=32))
    (draft / "README.txt").write_text(_README.format(version=VERSION, seed=seed), encoding="utf-8")
    paths, labels, splits, _ = zip(*rows, strict=True)
    csv_format.write(draft / "manifest.csv", paths, labels, splits)


def _publish(draft: Path, folder: Path) -> None:
    """Renames the draft; where another process was first, its set is as good."""
    try:
        draft.rename(folder)
    except OSError:
        if not (folder / "manifest.csv").is_file():
            raise
