"""Prepared images: every image decoded, upright, RGB and resized once, in one file on disk.

A store is a folder of three files. `images.u8` (N, 3, S, S) uint8 is mapped into memory, and so
shared, by all workers and processes. `rows.i8` (N, 3) int64 holds what tells that a source file
has changed (its bytes, and its time or checksum) and the CRC-32 of the prepared pixels, or -1
where the image could not be decoded. `index.json` says what was made and carries a checksum of
itself and of `rows.i8`. All of it is verified whenever a store is opened.

A store is filled in a `.part` folder that is renamed at the end, so that it is whole or absent. A
preparation that was stopped goes on where it was, after what it finds has been verified.
"""

import json
import logging
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from qcs.config.errors import UserError
from qcs.data.cache import cache_folder
from qcs.data.image_files import expanded, printable
from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)

VERSION = 1  # raise it whenever the prepared pixels change
ABSENT = -1


@dataclass(frozen=True)
class Store:
    """Prepared images (N, 3, S, S); `kept` are the manifest's rows that could be decoded."""

    folder: Path
    images: np.ndarray
    kept: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        """A copy of one image, (3, S, S) uint8."""
        return np.array(self.images[row])

    def __reduce__(self) -> tuple:  # a spawned worker maps the file again
        return _mapped, (self.folder, self.images.shape, self.kept)


def _mapped(folder: Path, shape: tuple[int, ...], kept: np.ndarray) -> Store:
    return Store(folder, np.memmap(folder / "images.u8", np.uint8, "r", shape=shape), kept)


def base(folder: str | Path) -> Path:
    """Where stores are kept: a folder, or for "auto" `prepared` in the user's cache folder."""
    return cache_folder() / "prepared" if folder == "auto" else expanded(folder)


def folder_of(manifest: Manifest, size: int, base: Path) -> Path:
    """The folder of a manifest's images at S = size; other files or boxes have another one."""
    text = f"{VERSION} {size} {manifest.root.resolve()}"
    key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    key.update("\n".join(manifest.paths.tolist()).encode("utf-8", "surrogatepass"))
    if manifest.boxes is not None:
        key.update(np.ascontiguousarray(manifest.boxes, dtype=np.int64).tobytes())
    return base / f"{manifest.root.stem[:50]}-{size}px-{key.hexdigest()}"


def find(
    manifest: Manifest, size: int, base: Path, command: str = "python -m qcs.prepare"
) -> Store | None:
    """Open the store of a whole manifest, or say why it is not used.

    Args:
        manifest: as its source reads it, all splits.
        size: S, the pixels of both sides.
        base: folder of the stores.
        command: the whole command that prepares these images, for the sentence.
    """
    folder = folder_of(manifest, size, base)
    if not os.path.isfile(folder / "index.json"):
        log.info("no prepared images, each is decoded anew: `%s` is faster", command)
        return None
    try:
        store = opened(folder, manifest, size, stamps_of(manifest))
    except UserError as error:
        sentence = "prepared images are not used and each is decoded anew: %s; run `%s` again"
        log.warning(sentence, error, command)
        return None
    if left_out := len(manifest) - len(store.kept):
        log.warning(
            "%d images that cannot be decoded are left out: %s", left_out, printable(folder)
        )
    log.info("prepared images: %s", printable(folder))
    return store


def skipped_images(folder: Path) -> list[dict]:
    """The images that a store left out: row, path and error of each."""
    return json.loads((folder / "index.json").read_bytes())["skipped"]


def stamps_of(manifest: Manifest) -> np.ndarray:
    """What changes with a file, (N, 2) int64; -1 where it cannot be found."""
    read, stamps = manifest.images.stamp, []
    for path in manifest.paths.tolist():
        try:
            stamps.append(read(path))
        except (OSError, KeyError):
            stamps.append((ABSENT, ABSENT))
    return np.array(stamps, dtype=np.int64)


def checksums(images: np.ndarray) -> np.ndarray:
    """CRC-32 of each of the images (N, 3, S, S), (N,) int64; about 1 GB a second and core."""
    parts = np.array_split(images, max(len(images) // 512, 1))
    with ThreadPoolExecutor() as pool:  # zlib lets go of Python's lock
        sums = pool.map(lambda part: [zlib.crc32(image) for image in part], parts)
        return np.array([crc for part in sums for crc in part], dtype=np.int64)


def seal(index: dict[str, Any], rows: np.ndarray) -> int:
    """Checksum of a store's index, without its own, and of its rows."""
    content = {name: value for name, value in index.items() if name != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode(), zlib.crc32(rows.tobytes()))


def opened(folder: Path, manifest: Manifest, size: int, stamps: np.ndarray) -> Store:
    """Open a store, all of whose bytes are checked.

    Raises:
        UserError: it is damaged, of another version or size, or out of date; says which.
    """
    shape = (len(manifest), 3, size, size)
    try:
        index = json.loads((folder / "index.json").read_bytes())
        if "checksum" not in index or index["version"] != VERSION:
            raise UserError(f"{folder} was made by another version of qcs")
        rows = np.fromfile(folder / "rows.i8", "<i8").reshape(-1, 3)
        if seal(index, rows) != index["checksum"] or len(rows) != len(manifest):
            raise UserError(f"index.json or rows.i8 of {folder} is damaged")
        if (folder / "images.u8").stat().st_size != math.prod(shape):
            raise UserError(f"images.u8 of {folder} has not the size that {shape} images have")
        store = _mapped(folder, shape, np.flatnonzero(rows[:, 2] != ABSENT))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{folder} cannot be read ({error})") from error
    changed = np.flatnonzero((rows[:, :2] != stamps).any(1))
    if len(changed):
        raise UserError(
            f"{len(changed)} of {len(rows)} files changed, the first is "
            f"{printable(manifest.paths[changed[0]])}"
        )
    wrong = (checksums(store.images) != rows[:, 2])[store.kept]
    if wrong.any():
        raise UserError(f"{wrong.sum()} of {len(wrong)} images in {folder} are damaged")
    return store
