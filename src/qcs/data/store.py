"""A store: images of one size in one file on disk, and how it is written, opened and verified.

A store is a folder of three files, for N images of S pixels a side:

- `images.u8`, (N, 3, S, S) uint8, is mapped into memory, and so shared by all workers and
  processes.
- `rows.i8`, (N, 3) int64, holds the signature of each source file, by which a change of the file is
  noticed, and the CRC-32 of the prepared pixels, or -1 where the image could not be decoded.
- `index.json` says what was made, and carries a checksum of itself and of `rows.i8`.

All of it is verified whenever the store is opened. A store is written into a folder whose name
ends with `.part` and which is renamed at the end, so that a store is either whole or absent.
"""

import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcs.config.errors import UserError
from qcs.config.escape import terminal

log = logging.getLogger(__name__)

VERSION = 1  # raise it whenever the prepared pixels change
ABSENT = -1  # the checksum of an image that is not there, and the signature of such a file


@dataclass(frozen=True)
class Store:
    """An open store.

    Args:
        folder: of its files.
        images: (N, 3, S, S) uint8, mapped from the disk.
        kept: the indices, among the N, of the images that could be decoded.
    """

    folder: Path
    images: np.ndarray
    kept: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        """A copy of one image, (3, S, S) uint8."""
        return np.array(self.images[row])

    def __reduce__(self) -> tuple:  # a spawned worker maps the file again
        return _map_images, (self.folder, self.images.shape, self.kept)


def _map_images(folder: Path, shape: tuple[int, ...], kept: np.ndarray) -> Store:
    return Store(folder, np.memmap(folder / "images.u8", np.uint8, "r", shape=shape), kept)


def open_store(folder: Path, paths: np.ndarray, size: int, signatures: np.ndarray) -> Store:
    """Open a store and check all of its bytes.

    Args:
        paths: (N,) str, of the images, for a message.
        size: S, the pixels of both sides.
        signatures: (N, 2), of the source files as they are now.

    Raises:
        UserError: it is damaged, of another version or size, or out of date; says which.
    """
    shape = (len(paths), 3, size, size)
    try:
        written = (folder / "index.json").read_text(encoding="utf-8")
        index = json.loads(written)
        if "checksum" not in index or index["version"] != VERSION:
            raise UserError(f"{folder} was made by another version of qcs")
        rows = np.frombuffer((folder / "rows.i8").read_bytes(), "<i8").reshape(-1, 3)
        right = written == _text(index) and _index_checksum(index, rows) == index["checksum"]
        if not right or len(rows) != len(paths):
            raise UserError(f"index.json or rows.i8 of {folder} is damaged")
        if (folder / "images.u8").stat().st_size != math.prod(shape):
            raise UserError(f"images.u8 of {folder} has not the size that {shape} images have")
        store = _map_images(folder, shape, np.flatnonzero(rows[:, 2] != ABSENT))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{folder} cannot be read ({error})") from error
    changed = np.flatnonzero((rows[:, :2] != signatures).any(1))
    if len(changed):
        raise UserError(
            f"{len(changed)} of {len(rows)} files changed, the first is "
            f"{terminal(paths[changed[0]])}"
        )
    wrong = (checksums(store.images) != rows[:, 2])[store.kept]
    if wrong.any():
        raise UserError(f"{wrong.sum()} of {len(wrong)} images in {folder} are damaged")
    return store


def checksums(images: np.ndarray) -> np.ndarray:
    """CRC-32 of each of the images (N, 3, S, S), (N,) int64; about 1 GB a second on each core."""
    parts = np.array_split(images, max(len(images) // 512, 1))
    with ThreadPoolExecutor() as pool:  # threads pay, as zlib releases Python's global lock
        sums = pool.map(lambda part: [zlib.crc32(image) for image in part], parts)
        return np.array([crc for part in sums for crc in part], dtype=np.int64)


def _text(index: dict[str, Any]) -> str:
    """What index.json holds."""
    return json.dumps(index, indent=1) + "\n"


def _index_checksum(index: dict[str, Any], rows: np.ndarray) -> int:
    """Checksum of a store's rows and of its index, but for the checksum in it."""
    content = {name: value for name, value in index.items() if name != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode(), zlib.crc32(rows.tobytes()))


class StoreWriter:
    """Writes a store into a `.part` folder beside it, or goes on with one that was left there.

    The files are written, not mapped into memory: a disk that fills up is then an error that can
    be reported, and not the end of the process.

    Args:
        signatures: (N, 2), of the source files.
        size: S, the pixels of both sides.

    Attributes:
        rows: (N, 3), what `rows.i8` holds; images that were found whole count as written.

    Raises:
        UserError: there is not enough space.
    """

    def __init__(self, folder: Path, signatures: np.ndarray, size: int) -> None:
        self.folder, self.size = folder, size
        self.part = folder.with_name(folder.name + ".part")
        self.rows = np.column_stack([signatures, np.full(len(signatures), ABSENT)])
        if not self._resume((len(signatures), 3, size, size)):
            self._make_room(len(signatures) * 3 * size * size)
        self.rows.astype("<i8").tofile(self.part / "rows.i8")

    def _resume(self, shape: tuple[int, ...]) -> bool:
        """Take over what a stopped writer left, where it is undamaged and its sources unchanged."""
        pixels, table = self.part / "images.u8", self.part / "rows.i8"
        if not (table.is_file() and pixels.is_file()):
            return False
        before = np.fromfile(table, "<i8")
        if pixels.stat().st_size != math.prod(shape) or before.size != self.rows.size:
            return False
        before = before.reshape(self.rows.shape)
        done = (before[:, :2] == self.rows[:, :2]).all(1) & (before[:, 2] != ABSENT)
        images = np.memmap(pixels, np.uint8, "r", shape=shape)
        done &= checksums(images) == before[:, 2]
        self.rows[done] = before[done]
        log.info("going on: %d of %d images are done", done.sum(), len(self.rows))
        return True

    def _make_room(self, needed: int) -> None:
        shutil.rmtree(self.part, ignore_errors=True)
        free = shutil.disk_usage(self.part.parent).free
        if free < 1.01 * needed:
            raise UserError(
                f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in "
                f"{self.part.parent}; give another folder as store=... or a smaller size=..."
            )
        self.part.mkdir()
        with (self.part / "images.u8").open("wb") as file:
            file.truncate(needed)

    def missing(self) -> list[int]:
        """The rows whose images are not written yet."""
        return np.flatnonzero(self.rows[:, 2] == ABSENT).tolist()

    def write(self, images: Sequence[tuple[int, np.ndarray]]) -> None:
        """Write images (3, S, S) by row: first their pixels, then that they are done."""
        with (self.part / "images.u8").open("r+b") as file:
            for row, pixels in images:
                file.seek(row * pixels.nbytes)
                file.write(pixels.tobytes())
                self.rows[row, 2] = zlib.crc32(pixels.tobytes())
        with (self.part / "rows.i8").open("r+b") as file:
            for row, _ in images:
                file.seek(row * self.rows[row].nbytes)
                file.write(self.rows[row].astype("<i8").tobytes())

    def finish(self, skipped: list[dict[str, Any]]) -> None:
        """Write the index, with the images that were left out, and put the store into its place."""
        made = {"version": VERSION, "size": self.size, "images": len(self.rows)}
        index = {**made, "skipped": skipped}
        content = _text(index | {"checksum": _index_checksum(index, self.rows)})
        (self.part / "index.json").write_text(content, encoding="utf-8")
        for path in self.part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():  # out of date; a process that has it open keeps its files
            self.folder.rename(old)
        self.part.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
