"""FERPlus: the owners' `data/FER2013{Train,Valid,Test}/` with votes and PNGs, or Kaggle's pixels.

In the first layout the votes are read from each folder's `label.csv`, as the owners' own reader
does. The file `fer2013new.csv` beside `data/` holds other votes for some images: with it, the same
rule gives 25,060 / 3,199 / 3,153 images, not the published 25,045 / 3,191 / 3,137. Kaggle's table
of pixels can only be joined with `fer2013new.csv`, line by line.

Source: Barsoum et al., "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016; github.com/microsoft/FERPlus.
"""

import csv
import io
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from qcs.config.errors import UserError
from qcs.data.containers import ZipImages, container
from qcs.data.folders import is_junk, list_files, readable, require_path
from qcs.data.manifest import Manifest
from qcs.data.sources import fer2013
from qcs.data.tables import as_text, read_csv

Rule = Literal["majority", "argmax", "probability", "soft"]

# The order of the votes, and of the authors' lists.
CLASS_NAMES = (
    "Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt",
)  # fmt: skip
CROP = fer2013.CROP  # of the same images
VOTED = len(CLASS_NAMES) + 2  # unknown, not a face
TABLE = "label.csv"
VOTES = "fer2013new.csv"
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
HINT = (
    "a folder or a .zip with data/FER2013Train, FER2013Valid and FER2013Test, each holding "
    "label.csv (github.com/microsoft/FERPlus) and the PNGs that the owners' script makes from "
    "Kaggle's fer2013.csv, or a folder with fer2013new.csv and Kaggle's fer2013.csv itself"
)


def majority(votes: np.ndarray) -> np.ndarray:
    """The owners' majority rule.

    Args:
        votes: (N, 10) counts: eight classes, unknown, not a face.

    Returns:
        (N,) class index, or -1 where no class wins. Single votes are dropped; the winner needs
        more than half of the others, and must be one of the eight classes.
    """
    votes = np.where(votes > 1, votes, 0)
    winner = votes.argmax(axis=1)
    wins = votes.max(axis=1) > 0.5 * votes.sum(axis=1)
    return np.where(wins & (winner < len(CLASS_NAMES)), winner, -1)


def argmax(votes: np.ndarray) -> np.ndarray:
    """The class with most votes, (N,): the rule of `majority`, without the need for a half."""
    votes = np.where(votes > 1, votes, 0)
    winner = votes.argmax(axis=1)
    return np.where((votes.max(axis=1) > 0) & (winner < len(CLASS_NAMES)), winner, -1)


def probability(votes: np.ndarray) -> np.ndarray:
    """The owners' soft labels.

    Single votes are dropped. Classes are then taken in the order of their votes, until there are
    three, or they have three quarters of the votes, or "unknown" or "not a face" comes. An image is
    not used where the classes have half of the votes or less, or where a tie gives more than three.

    Args:
        votes: (N, 10) counts.

    Returns:
        (N, 8) probabilities; rows of 0 where there are none.
    """
    soft = np.zeros((len(votes), VOTED))
    for row, counts in zip(soft, np.where(votes > 1, votes, 0).tolist(), strict=True):
        total, taken, valid = sum(counts), 0, True
        while row.sum() < 0.75 * total and taken < 3 and valid:
            top = max(counts)
            for i, count in enumerate(counts):
                if count != top:
                    continue
                row[i], counts[i], taken = top, 0, taken + 1
                if i >= len(CLASS_NAMES):
                    valid = False
                    if row.sum() > top:  # an expression came first
                        row[i], taken = 0, taken - 1
                    break
        if row.sum() <= 0.5 * total or taken > 3 or row.argmax() >= len(CLASS_NAMES):
            row[:] = 0
    soft = soft[:, : len(CLASS_NAMES)]
    return soft / np.maximum(soft.sum(axis=1, keepdims=True), 1)


def read(
    path: str | None = None, train_on_val: bool = False, labels: Rule = "majority"
) -> Manifest:
    """Read FERPlus; by majority 25,045 train, 3,191 val, 3,137 test images.

    Args:
        path: the folder or .zip that holds it, directly or in one folder (images in a zip are
            read in place), or a folder with Kaggle's table and fer2013new.csv.
        train_on_val: count the validation images as training ones (28,236), as papers do.
        labels: "majority" (as papers do), "argmax", "probability" (soft targets to train on), or
            "soft", which takes soft targets for the training images and the majority for the
            others, so that the test set has the papers' 3,137 images.

    Raises:
        UserError: no path given, nothing there, or the table or images are missing.
        UserError: a table is not FERPlus's, or the two tables do not belong together.
    """
    root = require_path(path, "FERPlus", HINT, (".zip",))
    if root.is_dir() and (table := fer2013.find_table(root)):
        root, files = table, None
        names, splits, votes = _kaggle(table)
    else:
        files = _files(root)
        names, splits, votes = _owners(root, files)
    splits = ["train" if s == "val" and train_on_val else s for s in splits]
    soft, index = _labels(votes, labels, np.array(splits) == "train")
    keep = np.flatnonzero((index >= 0) & (np.array(names) != ""))
    rows = [(names[i], int(index[i]), splits[i]) for i in keep.tolist()]
    if missing := [name for name, *_ in rows if files is not None and name not in files]:
        raise UserError(
            f"{len(missing)} of {len(rows)} images are not in {root}, the first is {missing[0]}; "
            f"FERPlus is expected as {HINT}"
        )
    targets = None if soft is None else soft[keep].astype(np.float32)
    return Manifest.build(root, rows, CLASS_NAMES, targets=targets)


def _labels(
    votes: np.ndarray, rule: Rule, training: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Soft targets (N, 8), or None where the rule gives none, and class indices (N,), -1 for none.

    Args:
        training: (N,), whether an image is trained on.
    """
    if rule == "majority":
        return None, majority(votes)
    if rule == "argmax":
        return None, argmax(votes)
    soft = probability(votes)
    if rule == "soft":
        won = majority(votes)[~training]
        soft[~training] = np.eye(len(CLASS_NAMES))[won] * (won >= 0)[:, None]
    return soft, np.where(soft.any(1), soft.argmax(1), -1)


def _owners(root: Path, files: set[str]) -> tuple[list[str], list[str], np.ndarray]:
    """Paths (empty where there is no image), splits and votes (N, 10) of the three folders."""
    names: list[str] = []
    splits: list[str] = []
    votes = []
    for folder, split in FOLDERS.items():
        tables = sorted(f for f in files if PurePosixPath(f).parts[-2:] == (folder, TABLE))
        table = tables[0] if tables else None
        if table is None:
            raise UserError(f"no {folder}/{TABLE} in {root}; FERPlus is expected as {HINT}")
        text = as_text(_content(root, table), root / table)
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        votes.append(_numbers([row[2:] for row in rows], table, root))
        base = str(PurePosixPath(table).parent)
        names += [f"{base}/{row[0]}" if row[0] else "" for row in rows]
        splits += [split] * len(rows)
    return names, splits, np.concatenate(votes)


def _content(root: Path, table: str) -> bytes:
    try:
        with container(root).open(table) as file:
            return file.read()
    except (OSError, UserError) as error:
        raise UserError(f"{table} of {root} cannot be read ({error})") from error


def _kaggle(table: Path) -> tuple[list[str], list[str], np.ndarray]:
    """As `_owners`, from Kaggle's pixels and fer2013new.csv beside them or one folder up."""
    places = [folder / VOTES for folder in (table.parent, table.parent.parent)]
    source = next((place for place in places if place.is_file()), places[0])
    lines, columns = read_csv(source, ("Usage", "Image name"))
    faces = fer2013.read_table(table)
    usages = list(columns["Usage"])
    pairs = zip(lines, usages, faces, strict=False)
    wrong = next((line for line, usage, face in pairs if usage != face.usage), None)
    if wrong or len(usages) != len(faces):
        raise UserError(
            f"{source} ({len(usages)} rows) does not belong to {table} ({len(faces)} rows): they "
            f"part at line {wrong or min(len(usages), len(faces)) + 2}; copy both again"
        )
    votes = zip(*list(columns.values())[2:], strict=True)
    named = zip(faces, columns["Image name"], strict=True)
    names = [f"line {face.line}" if name else "" for face, name in named]
    splits = [fer2013.USAGES[usage] for usage in usages]
    return names, splits, _numbers(list(votes), VOTES, source.parent)


def _files(root: Path) -> set[str]:
    """Paths of all files below a folder or in a zip, relative, with forward slashes."""
    if root.is_file():
        with readable(root):
            names = ZipImages(root).names()
    else:
        names = [file.relative_to(root).as_posix() for file in list_files(root).files]
    return {name for name in names if not any(map(is_junk, name.split("/")[:-1]))}


def _numbers(rows: list, table: str, root: Path) -> np.ndarray:
    try:
        votes = np.array(rows, dtype=int).reshape(len(rows), VOTED)
        if votes.size and votes.min() < 0:
            raise ValueError(f"a vote of {votes.min()}")
        return votes
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{table} of {root} is not the owners' table of image, box and ten votes ({error})"
        ) from error
