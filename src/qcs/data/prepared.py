"""Prepared images: every image decoded, upright, RGB and resized once, in one file on disk.

A store is a folder with `images.u8` (N, 3, S, S) uint8, which all workers and ranks map into
memory and so share, `stamps.npy` (N, 2), from which a changed source is noticed, and
`index.json`. `qcs.data.preparation` makes it.
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)

VERSION = 1  # raise it whenever the prepared pixels change


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
        return _open, (self.folder, self.images.shape, self.kept)


def _open(folder: Path, shape: tuple[int, ...], kept: np.ndarray) -> Store:
    return Store(folder, np.memmap(folder / "images.u8", np.uint8, "r", shape=shape), kept)


def base(folder: str | Path) -> Path:
    """Where stores are kept: a folder, or for "auto" qcs/prepared in the user's cache folder."""
    if folder != "auto":
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qcs" / "prepared"


def folder_of(manifest: Manifest, size: int, base: Path) -> Path:
    """The folder of a manifest's images at S = size; other files or boxes have another one."""
    key = hashlib.blake2b(f"{VERSION} {size} {manifest.root.resolve()}".encode(), digest_size=8)
    key.update("\n".join(manifest.paths.tolist()).encode())
    if manifest.boxes is not None:
        key.update(np.ascontiguousarray(manifest.boxes, dtype=np.int64).tobytes())
    return base / f"{manifest.root.stem}-{size}px-{key.hexdigest()}"


def find(manifest: Manifest, size: int, base: Path) -> Store | None:
    """Open the store of a whole manifest, or say why there is none.

    Args:
        manifest: as its source reads it, all splits.
        size: S, the pixels of both sides.
        base: folder of the stores.
    """
    folder = folder_of(manifest, size, base)
    if not (folder / "index.json").is_file():
        log.info(
            "no prepared images, each is decoded anew: `python -m qcs.prepare size=%d` is faster",
            size,
        )
        return None
    stamps = np.load(folder / "stamps.npy", allow_pickle=False)
    changed = np.flatnonzero((stamps != stamps_of(manifest)).any(1))
    if len(changed):
        log.warning(
            "prepared images are out of date and not used: %d of %d files changed, the first is "
            "%s; run `python -m qcs.prepare` again",
            len(changed),
            len(manifest),
            manifest.paths[changed[0]],
        )
        return None
    skipped = {bad["row"] for bad in skipped_images(folder)}
    kept = np.array([row for row in range(len(manifest)) if row not in skipped])
    if skipped:
        log.warning("%d images that cannot be decoded are left out: %s", len(skipped), folder)
    log.info("prepared images: %s", folder)
    return _open(folder, (len(manifest), 3, size, size), kept)


def skipped_images(folder: Path) -> list[dict]:
    """The images that a store left out: row, path and error of each."""
    return json.loads((folder / "index.json").read_text())["skipped"]


def stamps_of(manifest: Manifest) -> np.ndarray:
    """What changes with a file, (N, 2) int64; -1 where it cannot be found."""
    read, stamps = manifest.images.stamp, []
    for path in manifest.paths.tolist():
        try:
            stamps.append(read(path))
        except (OSError, KeyError):
            stamps.append((-1, -1))
    return np.array(stamps, dtype=np.int64)
