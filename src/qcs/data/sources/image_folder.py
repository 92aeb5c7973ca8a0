"""A folder of class folders: `train/<class>/*`, `test/<class>/*` (`val/` if any), or one level.

The layout of torchvision's ImageFolder and of most re-packagings. Split folders may be called as
in `qcs.data.image_files.SPLIT_FOLDERS`, in capitals or not. A class folder is one that holds an
image, at any depth; in two splits a class may be written with other capitals or blanks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qcs.config.bounds import Fraction, Seed
from qcs.config.errors import UserError
from qcs.data.image_files import (
    images_below,
    is_junk,
    printable,
    same_name,
    split_of,
    warn_left_out,
)
from qcs.data.manifest import Manifest, require

HINT = "a folder with train/<class>/* and test/<class>/*, or with <class>/* alone"


class Placed(NamedTuple):
    """An image in a class folder; `split` is None where the folder has no splits."""

    path: str
    split: str | None
    name: str


def read(path: str | None = None, test_fraction: Fraction = 0.2, seed: Seed = 0) -> Manifest:
    """Read a folder of class folders; the classes are the folders' names, sorted.

    Args:
        path: the folder.
        test_fraction: seeded share of each class that becomes the test set where the folder has
            no split of its own.
        seed: of that share.

    Raises:
        UserError: no path given, nothing there, or no images in it.
        UserError: a class of val or test that train lacks, two classes of train whose names
            differ by capitals or blanks only, or a fraction outside (0, 1).
    """
    root = require(path, "the image folder", HINT)
    placed = place(root)
    if not placed:
        raise UserError(f"no images in {root}; expected {HINT}")
    names = _class_names(root, placed)
    index = {same_name(name): i for i, name in enumerate(names)}
    rows = []
    for image in placed:
        if (label := index.get(same_name(image.name))) is None:
            raise UserError(
                f"{root / image.path} is of the class {image.name!r}, which the training folder "
                f"of {root} does not have: it has {', '.join(names)}"
            )
        rows.append((image.path, label, image.split or "train"))
    manifest = Manifest.build(root, rows, names)
    return manifest if placed[0].split else _cut_test(manifest, test_fraction, seed)


def place(root: Path) -> list[Placed]:
    """Find the images in class folders, sorted by path; images elsewhere are left out and named.

    Raises:
        UserError: a folder cannot be read, or there is a test or val folder and no train folder.
    """
    files = images_below(root)
    parts = [file.relative_to(root).parts for file in files]
    splits = {p[0]: split for p in parts if len(p) > 1 and (split := split_of(p[0]))}
    if splits and "train" not in splits.values():
        raise UserError(
            f"{root} has images in {', '.join(sorted(splits))} and none in train; expected {HINT}"
        )
    depth, placed, outside = bool(splits), [], []
    for file, p in zip(files, parts, strict=True):
        if len(p) < depth + 2 or (splits and p[0] not in splits):
            outside.append(file)
        else:
            placed.append(Placed("/".join(p), splits.get(p[0]), p[depth]))
    warn_left_out(f"{root}, outside of its class folders", outside, kind="images")
    _warn_empty(root, splits, {p[: depth + 1] for p in parts})
    return placed


def _warn_empty(root: Path, splits: Sequence[str], used: set[tuple[str, ...]]) -> None:
    """Name the folders that would be classes if they held an image."""
    for top in [(name,) for name in splits] or [()]:
        folder = root.joinpath(*top)
        empty = sorted(
            d for d in folder.iterdir()
            if d.is_dir() and not is_junk(d.name) and (*top, d.name) not in used
        )  # fmt: skip
        warn_left_out(f"{folder}, without an image", empty, kind="folders")


def _class_names(root: Path, placed: Sequence[Placed]) -> list[str]:
    """The class folders' names of train, or of a folder without splits."""
    names = sorted({image.name for image in placed if image.split in (None, "train")})
    spellings: dict[str, str] = {}
    for name in names:
        other = spellings.setdefault(same_name(name), name)
        if other != name:
            raise UserError(
                f"{root} has the class folders {printable(other)!r} and {printable(name)!r}, "
                "which differ by capitals or blanks only; put their images into one folder"
            )
    return names


def _cut_test(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    held = manifest.hold_out(fraction, seed, key="dataset.test_fraction")
    splits = np.where(held.splits == "val", "test", "train")
    return Manifest(held.root, held.paths, held.labels, splits, held.class_names)
