"""Making a store of prepared images, see `qcs.data.prepared`.

It is filled in a `.part` folder that is renamed at the end: a store is whole or absent, and a
killed preparation goes on where it was.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from qcs.config.errors import UserError
from qcs.data.images import BROKEN
from qcs.data.manifest import Manifest
from qcs.data.prepared import VERSION, folder_of, skipped_images, stamps_of
from qcs.data.transforms import resized

try:
    import fcntl
except ImportError:  # Windows: two processes that prepare the same images are not kept apart
    fcntl = None

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
CHUNK = 64
PENDING, DONE, BAD = 0, 1, 2


def prepare(
    manifest: Manifest,
    size: int,
    base: Path,
    on_error: OnError = "fail",
    num_workers: int = 2,
    progress: bool = True,
) -> Path:
    """Make the store of a manifest, or go on making it; return its folder.

    Args:
        manifest: as its source reads it, all splits.
        size: S, the pixels of both sides.
        base: folder of the stores.
        on_error: "fail" at the first image that cannot be decoded, or "skip" and list them.
        num_workers: processes that decode; 0 decodes in this one.
        progress: whether to show a bar.

    Raises:
        UserError: an image cannot be decoded (what was done is kept), or none can.
        UserError: not enough space, or another process is preparing the same images.
    """
    if size < 1 or num_workers < 0:
        raise UserError(f"size must be 1 or more, num_workers 0 or more: {size}, {num_workers}")
    folder, stamps = folder_of(manifest, size, base), stamps_of(manifest)
    base.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock")):
        if _current(folder, stamps) and not (on_error == "fail" and skipped_images(folder)):
            return folder
        part = folder.with_name(folder.name + ".part")
        images, state = _begin(part, stamps, size)
        skipped = _fill(manifest, size, images, state, on_error, num_workers, progress)
        if len(skipped) == len(manifest):
            raise UserError(f"no image of {manifest.root} can be decoded: {skipped[0]['error']}")
        index = {"version": VERSION, "size": size, "images": len(manifest), "skipped": skipped}
        _write(part / "index.json", json.dumps(index, indent=1).encode())
        (part / "state.npy").unlink()
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():  # out of date; those who have it open keep it
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _current(folder: Path, stamps: np.ndarray) -> bool:
    if not (folder / "index.json").is_file():
        return False
    return np.array_equal(np.load(folder / "stamps.npy", allow_pickle=False), stamps)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system frees it when the process ends, killed or not."""
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process is preparing these images ({path})") from error
        yield


def _begin(part: Path, stamps: np.ndarray, size: int) -> tuple[np.memmap, np.memmap]:
    """Open the images and the state of each row; what is done and unchanged stays done."""
    shape, bytes_needed = (len(stamps), 3, size, size), len(stamps) * 3 * size * size
    pixels, before = part / "images.u8", part / "stamps.npy"
    if pixels.is_file() and pixels.stat().st_size == bytes_needed and before.is_file():
        images = np.memmap(pixels, np.uint8, "r+", shape=shape)
        state = np.lib.format.open_memmap(part / "state.npy", "r+")
        changed = (np.load(before, allow_pickle=False) != stamps).any(1)
        state[changed | (state == BAD)] = PENDING
        log.info("going on: %d of %d images are done", (state == DONE).sum(), len(state))
    else:
        shutil.rmtree(part, ignore_errors=True)
        free = shutil.disk_usage(part.parent).free
        if free < 1.01 * bytes_needed:
            raise UserError(
                f"{bytes_needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in "
                f"{part.parent}; give another folder as store=... or a smaller size=..."
            )
        part.mkdir()
        state = np.lib.format.open_memmap(part / "state.npy", "w+", np.uint8, (len(stamps),))
        images = np.memmap(pixels, np.uint8, "w+", shape=shape)
    with (part / "stamps.new").open("wb") as file:
        np.save(file, stamps)
    (part / "stamps.new").replace(before)
    return images, state


def _fill(
    manifest: Manifest,
    size: int,
    images: np.memmap,
    state: np.memmap,
    on_error: OnError,
    num_workers: int,
    progress: bool,
) -> list[dict]:
    """Decode what is not done; return the rows that cannot be."""
    todo = np.flatnonzero(state != DONE).tolist()
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    loader = DataLoader(
        Decoded(manifest, size), batch_sampler=chunks, num_workers=num_workers, collate_fn=_same
    )
    skipped = []
    for rows, pixels, errors in track(
        loader, "preparing", len(chunks), disable=not progress, transient=True
    ):
        good = [row for row in rows if row not in errors]
        images[good] = pixels
        state[good] = DONE  # after the pixels; both are the system's to write from here on
        for row, error in errors.items():
            if on_error == "fail":
                raise UserError(
                    f"{error}, or leave such images out: on_error=skip (what is done is kept)"
                )
            state[row] = BAD
            skipped.append({"row": row, "path": str(manifest.paths[row]), "error": error})
    images.flush()
    state.flush()
    return skipped


def _same(batch: tuple) -> tuple:
    return batch


class Decoded(Dataset):
    """Resized images of a manifest, many at a time; errors are returned, not raised."""

    def __init__(self, manifest: Manifest, size: int) -> None:
        self.manifest, self.size = manifest, size

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitems__(self, rows: list[int]) -> tuple[list[int], np.ndarray, dict[int, str]]:
        """Return the rows, the pixels (n, 3, S, S) of the n good ones, and errors by row."""
        pixels, errors = [], {}
        for row in rows:
            try:
                pixels.append(resized(self.manifest.image(row), self.size).numpy())
            except BROKEN as error:
                errors[row] = str(error)
        stacked = np.stack(pixels) if pixels else np.empty((0, 3, self.size, self.size), np.uint8)
        return rows, stacked, errors


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
