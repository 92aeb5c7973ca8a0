"""What a data set is: images, labels, splits, class names; checked on opening.

A manifest's CSV has the columns `path,label,split`: a path relative to the CSV's folder (or to
`root`), a class name, and one of train, val, test.
"""

import csv
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SPLITS = ("train", "val", "test")


def require(path: str | None, name: str, hint: str) -> Path:
    """Return the path of a data set that the user holds.

    Raises:
        FileNotFoundError: it was not given, or nothing is there; says what is expected.
    """
    if path is None:
        raise FileNotFoundError(f"dataset.path is not set: {name} is read from {hint}")
    found = Path(path).expanduser()
    if not (found.is_dir() or (found.is_file() and found.suffix == ".zip")):
        raise FileNotFoundError(f"nothing to read at dataset.path={path}: {name} is {hint}")
    return found


@dataclass(frozen=True)
class Manifest:
    """A table of N images.

    Args:
        root: folder or .zip file that the paths are relative to.
        paths: (N,) str.
        labels: (N,) int64, indices into `class_names`.
        splits: (N,) str, each one of train, val, test.
        class_names: K names; their order is the model's.

    Raises:
        ValueError: no rows, columns of different lengths, a label out of range, an unknown split,
            fewer than two classes or a class name twice.
    """

    root: Path
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        where, names = f"data set {self.root}", self.class_names
        if not len(self.paths) == len(self.labels) == len(self.splits):
            raise ValueError(f"{where}: paths, labels and splits differ in length")
        if len(self.paths) == 0:
            raise ValueError(f"{where}: holds no images")
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"{where}: needs two or more different class names, got {list(names)}")
        low, high = self.labels.min(), self.labels.max()
        if low < 0 or high >= len(names):
            raise ValueError(
                f"{where}: labels run from {low} to {high}, but there are {len(names)} classes "
                f"(0 to {len(names) - 1}): {', '.join(names)}"
            )
        if unknown := set(np.unique(self.splits).tolist()) - set(SPLITS):
            raise ValueError(f"{where}: unknown split {sorted(unknown)}, expected one of {SPLITS}")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Manifest":
        """Return the manifest of these rows (a mask or indices)."""
        return replace(
            self, paths=self.paths[rows], labels=self.labels[rows], splits=self.splits[rows]
        )

    def split(self, name: str) -> "Manifest":
        """Return the rows of one split.

        Raises:
            ValueError: the split is empty.
        """
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            raise ValueError(f"data set {self.root} has no {name} images")
        return self.select(rows)

    def has(self, split: str) -> bool:
        """Whether the split holds an image."""
        return bool((self.splits == split).any())

    def counts(self) -> np.ndarray:
        """Images of each class, (K,) int64."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def hold_out(self, fraction: float, seed: int, key: str = "loader.val_fraction") -> "Manifest":
        """Move a seeded share of each class's training images to val (at least one of two).

        `key` is the configuration key that an error names.

        Raises:
            ValueError: a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"{key} must be above 0 and below 1, got {fraction}")
        rng, splits = np.random.default_rng(seed), self.splits.astype("<U5")
        for label in range(len(self.class_names)):
            rows = np.flatnonzero((self.labels == label) & (self.splits == "train"))
            number = max(round(fraction * len(rows)), 1) if len(rows) > 1 else 0
            splits[rng.permutation(rows)[:number]] = "val"
        return replace(self, splits=splits)

    @cached_property
    def _images(self) -> "FolderImages | ZipImages":
        return ZipImages(self.root) if self.root.suffix == ".zip" else FolderImages(self.root)

    def image(self, row: int) -> Image.Image:
        """Decode one image as RGB.

        Raises:
            ValueError: it is missing or cannot be decoded; the sentence names the file.
        """
        path = str(self.paths[row])
        try:
            with self._images.open(path) as file, Image.open(file) as image:
                return image.convert("RGB")
        except (OSError, KeyError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"cannot read image {path} of {self.root} ({error}); repair or remove the file"
            ) from error

    @classmethod
    def build(
        cls,
        root: Path,
        rows: Sequence[tuple[str, int, str]],
        class_names: Sequence[str],
    ) -> "Manifest":
        """Make a manifest from rows of (path, label index, split)."""
        paths, labels, splits = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(
            root,
            np.array(paths, dtype=np.str_),
            np.array(labels, dtype=np.int64),
            np.array(splits, dtype=np.str_),
            tuple(class_names),
        )

    @classmethod
    def from_csv(
        cls,
        path: str | Path | None,
        root: str | Path | None = None,
        class_names: Sequence[str] = (),
    ) -> "Manifest":
        """Read a CSV of `path,label,split`, labels being class names.

        Args:
            path: the CSV file.
            root: folder that the paths are relative to; the CSV's own by default.
            class_names: the order of the classes; sorted names by default.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a missing column, or a label that is not among `class_names`.
        """
        if path is None:
            raise FileNotFoundError("dataset.path is not set: a CSV of path,label,split")
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no manifest at {path}: expected a CSV of path,label,split")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := {"path", "label", "split"} - set(reader.fieldnames or ()):
                raise ValueError(f"{path} lacks the column {sorted(missing)} (path,label,split)")
            table = [(row["path"], row["label"], row["split"]) for row in reader]
        names = tuple(class_names) or tuple(sorted({label for _, label, _ in table}))
        index = {name: i for i, name in enumerate(names)}
        if unknown := {label for _, label, _ in table} - set(names):
            raise ValueError(
                f"{path} has the label {sorted(unknown)[0]!r}, expected one of {names}"
            )
        rows = [(image, index[label], split) for image, label, split in table]
        return cls.build(Path(root).expanduser() if root else path.parent, rows, names)


class FolderImages:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str):
        """Open one file for reading."""
        return open(self.root / path, "rb")


class ZipImages:
    """Members of a zip file, read in place; each process opens its own handle."""

    def __init__(self, root: Path) -> None:
        self.root, self._pid, self._zip = root, -1, None

    def open(self, path: str) -> BytesIO:
        """Read one member into memory."""
        if self._pid != os.getpid():  # a handle shared over a fork shares its file position
            self._zip, self._pid = zipfile.ZipFile(self.root), os.getpid()
        return BytesIO(self._zip.read(path))

    def __getstate__(self) -> dict:
        return {"root": self.root, "_pid": -1, "_zip": None}
