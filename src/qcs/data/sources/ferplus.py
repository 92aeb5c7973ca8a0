"""FERPlus in the layout its owners publish: `data/FER2013{Train,Valid,Test}/` with votes and PNGs.

The votes are read from each folder's `label.csv`, as the owners' own reader does;
`fer2013new.csv` beside `data/` holds other votes for some images and gives 25,060 / 3,199 /
3,153 images by the same rule, not the published 25,045 / 3,191 / 3,137.

Source: Barsoum et al., "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016; github.com/microsoft/FERPlus.
"""

import csv
import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from qcs.data.manifest import Manifest, require

# The order of the votes, and of the authors' lists.
CLASS_NAMES = (
    "Neutral",
    "Happiness",
    "Surprise",
    "Sadness",
    "Anger",
    "Disgust",
    "Fear",
    "Contempt",
)
TABLE = "label.csv"
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
HINT = (
    "a folder or a .zip with data/FER2013Train, FER2013Valid and FER2013Test, each holding "
    "label.csv (github.com/microsoft/FERPlus) and the PNGs that the owners' script makes from "
    "Kaggle's fer2013.csv"
)


def majority(votes: np.ndarray) -> np.ndarray:
    """The owners' majority rule.

    Args:
        votes: (N, 10) counts: eight classes, unknown, not a face.

    Returns:
        (N,) class index, or -1 where none wins: single votes are dropped, the winner needs more
        than half of the rest and must be one of the eight classes.
    """
    votes = np.where(votes > 1, votes, 0)
    winner = votes.argmax(axis=1)
    wins = votes.max(axis=1) > 0.5 * votes.sum(axis=1)
    return np.where(wins & (winner < len(CLASS_NAMES)), winner, -1)


def read(path: str | None = None, train_on_val: bool = False) -> Manifest:
    """Read FERPlus with majority labels: 25,045 train, 3,191 val, 3,137 test images.

    Args:
        path: the folder or .zip that holds it, directly or in one folder (images in a zip are
            read in place).
        train_on_val: count the validation images as training ones (28,236), as papers do.

    Raises:
        FileNotFoundError: no path given, nothing there, or the table or images are missing.
        ValueError: the table is not FERPlus's.
    """
    root = require(path, "FERPlus", HINT)
    files = _files(root)
    rows = []
    for folder, split in FOLDERS.items():
        table = next((f for f in files if PurePosixPath(f).parts[-2:] == (folder, TABLE)), None)
        if table is None:
            raise FileNotFoundError(f"no {folder}/{TABLE} in {root}; FERPlus is expected as {HINT}")
        split = "train" if split == "val" and train_on_val else split
        base = PurePosixPath(table).parent
        rows += [(str(base / image), label, split) for image, label in _labels(root, table)]
    if missing := [image for image, _, _ in rows if image not in files]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(rows)} images are not in {root}, the first is {missing[0]}; "
            f"FERPlus is expected as {HINT}"
        )
    return Manifest.build(root, rows, CLASS_NAMES)


def _files(root: Path) -> set[str]:
    """Paths of all files below a folder or in a zip, relative, with forward slashes."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root) as archive:
            return set(archive.namelist())
    return {f.relative_to(root).as_posix() for f in root.rglob("*") if f.suffix in (".csv", ".png")}


def _labels(root: Path, table: str) -> list[tuple[str, int]]:
    """(image name, label) of the rows that have an image and a majority."""
    file = zipfile.Path(root, table) if root.suffix == ".zip" else root / table
    rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    try:
        votes = np.array([row[2:] for row in rows], dtype=int).reshape(len(rows), 10)
    except ValueError as error:
        raise ValueError(
            f"{table} of {root} is not the owners' table of image, box and ten votes ({error})"
        ) from error
    labels = majority(votes).tolist()
    return [(row[0], y) for row, y in zip(rows, labels, strict=True) if y >= 0 and row[0]]
