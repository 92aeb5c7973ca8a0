"""A folder of class folders: `train/<class>/*`, `test/<class>/*` (`val/` if any), or one level.

The layout of torchvision's ImageFolder and of most re-packagings. A split folder has one of the
names of `qcs.data.folders.SPLIT_FOLDERS`, in capitals or not. A class folder holds an image, at any
depth. The name of a class may differ in capitals and blanks between the splits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qcs.config.bounds import Fraction, Seed
from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.folders import images_below, is_junk, require_path, same_name, split_of, warn_left_out
from qcs.data.manifest import Manifest
from qcs.data.splits import hold_out

HINT = "a folder with train/<class>/* and test/<class>/*, or with <class>/* alone"


class ClassImage(NamedTuple):
    """An image in a class folder; `split` is None where the folder has no splits."""

    path: str
    split: str | None
    class_name: str


def read(path: str | None = None, test_fraction: Fraction = 0.2, seed: Seed = 0) -> Manifest:
    """Read a folder of class folders; the classes are the folders' names, sorted.

    Args:
        test_fraction: random share of each class that becomes the test set, where the folder has
            no splits.

    Raises:
        UserError: no path given, nothing there, or no images in it.
        UserError: a class of val or test that train lacks, two classes of train whose names
            differ by capitals or blanks only, or the fraction is not between 0 and 1.
    """
    root = require_path(path, "the image folder", HINT)
    images = find_images(root)
    if not images:
        raise UserError(f"no images in {root}; expected {HINT}")
    names = _class_names(root, images)
    index = {same_name(name): i for i, name in enumerate(names)}
    rows = []
    for image in images:
        if (label := index.get(same_name(image.class_name))) is None:
            raise UserError(
                f"{root / image.path} is of the class {image.class_name!r}, which the training "
                f"folder of {root} does not have: it has {', '.join(names)}"
            )
        rows.append((image.path, label, image.split or "train"))
    manifest = Manifest.build(root, rows, names)
    if images[0].split:
        return manifest
    held = hold_out(manifest, test_fraction, seed, key="dataset.test_fraction")
    return replace(held, splits=np.where(held.splits == "val", "test", "train"))


def find_images(root: Path) -> list[ClassImage]:
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
    depth, images, outside = int(bool(splits)), [], []
    for file, p in zip(files, parts, strict=True):
        if len(p) < depth + 2 or (splits and p[0] not in splits):
            outside.append(file)
        else:
            images.append(ClassImage("/".join(p), splits.get(p[0]), p[depth]))
    warn_left_out(f"{root}, outside of its class folders", outside, kind="images")
    _warn_empty(root, splits, {p[: depth + 1] for p in parts})
    return images


def _warn_empty(root: Path, splits: Iterable[str], used: set[tuple[str, ...]]) -> None:
    """Name the folders that would be classes if they held an image."""
    tops: list[tuple[str, ...]] = [(name,) for name in splits] or [()]
    for top in tops:
        folder = root.joinpath(*top)
        empty = sorted(
            d for d in folder.iterdir()
            if d.is_dir() and not is_junk(d.name) and (*top, d.name) not in used
        )  # fmt: skip
        warn_left_out(f"{folder}, without an image", empty, kind="folders")


def _class_names(root: Path, images: Sequence[ClassImage]) -> list[str]:
    """The names of the class folders in train, or of all where there are no splits."""
    names = sorted({image.class_name for image in images if image.split in (None, "train")})
    spellings: dict[str, str] = {}
    for name in names:
        other = spellings.setdefault(same_name(name), name)
        if other != name:
            raise UserError(
                f"{root} has the class folders {terminal(other)!r} and {terminal(name)!r}, "
                "which differ by capitals or blanks only; put their images into one folder"
            )
    return names
