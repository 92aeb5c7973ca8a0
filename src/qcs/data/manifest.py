"""What a data set is: images with their labels, splits and class names, checked when it is made."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data import csv_format
from qcs.data.containers import BROKEN, Container, container
from qcs.data.folders import SPLITS, same_name
from qcs.data.images import decode
from qcs.data.store import Store
from qcs.data.tables import garbage_collection_paused


@dataclass(frozen=True)
class Manifest:
    """A table of N images.

    Args:
        root: folder or .zip file that the paths are relative to, or a .csv of pixels.
        paths: (N,) str.
        labels: (N,) int64, indices into `class_names`.
        splits: (N,) str, each one of train, val, test.
        class_names: K names; their order is the model's.
        boxes: (N, 4) int, left, top, right, bottom of the face in pixels; None for whole images.
        targets: (N, K) float32, a probability for each class to train on, `labels` being their
            largest; None to train on the labels.
        store: prepared images, see `with_store`.
        stored: (N,) their rows in it.

    Raises:
        UserError: no rows, columns of different lengths, a label out of range, an unknown split,
            fewer than two classes or a class name twice.
    """

    root: Path
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    boxes: np.ndarray | None = None
    targets: np.ndarray | None = None
    store: Store | None = None
    stored: np.ndarray | None = None

    def __post_init__(self) -> None:
        where, names = f"data set {self.root}", self.class_names
        if any(len(column) != len(self.paths) for column in self._columns().values()):
            raise UserError(f"{where}: its columns differ in length")
        if len(self.paths) == 0:
            raise UserError(f"{where}: holds no images")
        different = {same_name(name) for name in names} - {""}
        if len(names) < 2 or len(different) != len(names):
            raise UserError(
                f"{where}: needs two or more class names that differ by more than capitals and "
                f"blanks, got {list(names)}"
            )
        low, high = self.labels.min(), self.labels.max()
        if low < 0 or high >= len(names):
            raise UserError(
                f"{where}: labels run from {low} to {high}, but there are {len(names)} classes "
                f"(0 to {len(names) - 1}): {', '.join(names)}"
            )
        if unknown := set(np.unique(self.splits).tolist()) - set(SPLITS):
            raise UserError(f"{where}: unknown split {sorted(unknown)}, expected one of {SPLITS}")

    def __len__(self) -> int:
        return len(self.paths)

    def _columns(self) -> dict[str, np.ndarray]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, np.ndarray)}

    def select(self, rows: np.ndarray) -> "Manifest":
        """Return the manifest of these rows (a mask or indices)."""
        return replace(self, **{name: column[rows] for name, column in self._columns().items()})

    def split(self, name: str) -> "Manifest":
        """Return the rows of one split.

        Raises:
            UserError: the split is empty.
        """
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            has = ", ".join(split for split in SPLITS if self.has(split))
            raise UserError(f"data set {self.root} has no {name} images, only {has}")
        return self.select(rows)

    def has(self, split: str) -> bool:
        """Whether the split holds an image."""
        return bool((self.splits == split).any())

    def counts(self) -> np.ndarray:
        """Images of each class, (K,) int64."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """Return a hex digest that differs between data sets; no pixel is read for it.

        It depends on the class names, and on the paths, labels, splits, boxes and targets of all
        rows in their order. It does not depend on where the files lie, so that a data set that was
        moved stays the same one.
        """
        digest = blake2b(digest_size=16)
        names = "\0".join([*self.class_names, "", *self.paths.tolist()])
        digest.update(names.encode("utf-8", "surrogatepass"))
        splits = sum(i * (self.splits == split) for i, split in enumerate(SPLITS))
        for column in (splits, self.labels, self.boxes, self.targets):
            kind = np.float32 if column is self.targets else np.int64
            digest.update(b"" if column is None else np.ascontiguousarray(column, kind).tobytes())
            digest.update(b"|")
        return digest.hexdigest()

    @cached_property
    def images(self) -> Container:
        """The folder, zip file or table of pixels that the images are read from."""
        return container(self.root)

    def image(self, row: int) -> Image.Image:
        """Decode one image as upright RGB, cut to its box.

        Raises:
            UserError: it is missing or cannot be decoded; the sentence names the file.
        """
        path = str(self.paths[row])
        try:
            with self.images.open(path) as file:
                image = decode(file)
            return image if self.boxes is None else _cut(image, self.boxes[row].tolist())
        except BROKEN as error:
            where = terminal(f"{path} of {self.root}")
            raise UserError(
                f"cannot read image {where} ({error}); repair or remove the file"
            ) from error

    def with_store(self, store: Store) -> "Manifest":
        """This whole manifest with prepared images, less those that could not be prepared."""
        return replace(self.select(store.kept), store=store, stored=store.kept)

    @classmethod
    def build(
        cls,
        root: Path,
        rows: Sequence[tuple],
        class_names: Sequence[str],
        boxes: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> "Manifest":
        """Make a manifest from rows of (path, label index, split, ...).

        >>> rows = [("a.png", 0, "train"), ("b.png", 1, "train"), ("c.png", 0, "test")]
        >>> manifest = Manifest.build(Path("faces"), rows, ("happy", "sad"))
        >>> len(manifest), manifest.counts().tolist(), manifest.split("test").paths.tolist()
        (3, [2, 1], ['c.png'])
        """
        paths, labels, splits = ([row[i] for row in rows] for i in range(3))
        return cls(
            root,
            np.array(paths, dtype=np.str_),
            np.array(labels, dtype=np.int64),
            np.array(splits, dtype=np.str_),
            tuple(class_names),
            boxes,
            targets,
        )

    @classmethod
    @garbage_collection_paused()
    def from_csv(
        cls,
        path: str | Path | None,
        root: str | Path | None = None,
        class_names: Sequence[str] = (),
    ) -> "Manifest":
        """Read a CSV of `path,label,split`, labels being class names.

        Args:
            root: folder, .zip or .csv of pixels that the paths are relative to; the CSV's own
                folder by default.
            class_names: the order of the classes; sorted names by default.

        Raises:
            UserError: no such file, or images that are not there.
            UserError: a missing column, an unknown split, a label that is not among
                `class_names` or is spelt in two ways, or an image listed twice with different ones.
        """
        return cls.build(*csv_format.read(path, root, class_names))

    def to_csv(self, path: Path) -> None:
        """Write what `from_csv` reads: paths, class names and splits.

        Raises:
            UserError: a name cannot be written as UTF-8.
        """
        labels = np.array(self.class_names)[self.labels].tolist()
        csv_format.write(path, self.paths.tolist(), labels, self.splits.tolist())


def _cut(image: Image.Image, box: list[int]) -> Image.Image:
    left, top, right, bottom = box
    inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise UserError(
            f"its face box {left},{top},{right},{bottom} lies outside its "
            f"{image.width}x{image.height} pixels"
        )
    return image.crop(inside)
