"""Making a store of prepared images, see `qcs.data.prepared`.

It is filled in a `.part` folder that is renamed at the end, so that it is whole or absent. A
preparation that was stopped goes on where it was, after what it finds has been verified; a store
that is damaged or out of date is made again.
"""

import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from qcs.config.errors import UserError
from qcs.data.decoding import Decoded, decoded
from qcs.data.manifest import Manifest
from qcs.data.prepared import ABSENT, VERSION, checksums, folder_of, opened, seal, stamps_of
from qcs.data.transforms import resized

try:
    import fcntl
except ImportError:  # Windows: two processes that prepare the same images are not kept apart
    fcntl = None

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
Decode = Callable[[list[int]], Iterator[list[Decoded]]]  # rows -> their images, many at a time


def prepare(
    manifest: Manifest,
    size: int,
    base: Path,
    on_error: OnError = "fail",
    num_workers: int = 2,
    progress: bool = True,
) -> Path:
    """Make the store of a manifest, or go on making or repair it; return its folder.

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
    decode = partial(
        decoded,
        manifest,
        partial(_small, size=size),
        num_workers=num_workers,
        title="preparing" if progress else None,
    )
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            if not _is_current(folder, manifest, size, stamps, on_error):
                part = folder.with_name(folder.name + ".part")
                rows = _begin(part, stamps, size)
                skipped = _fill(part, rows, decode, on_error)
                if len(skipped) == len(manifest):
                    sentence = f"no image of {manifest.root} can be decoded"
                    raise UserError(f"{sentence}: {skipped[0]['error']}")
                for bad in skipped:
                    bad["path"] = str(manifest.paths[bad["row"]])
                made = {"version": VERSION, "size": size, "images": len(manifest)}
                _finish(part, folder, rows, made | {"skipped": skipped})
    except OSError as error:
        raise UserError(
            f"cannot write prepared images into {base} ({error.strerror or error}); what is done "
            "is kept, so make room or allow it and give the command again, or another store=..."
        ) from error
    return folder


def _small(image: Image.Image, size: int) -> np.ndarray:
    return resized(image, size).numpy()


def _is_current(
    folder: Path, manifest: Manifest, size: int, stamps: np.ndarray, on_error: OnError
) -> bool:
    if not (folder / "index.json").is_file():
        return False
    try:
        store = opened(folder, manifest, size, stamps)
    except UserError as error:
        log.warning("prepared anew: %s", error)
        return False
    return on_error == "skip" or len(store.kept) == len(manifest)


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


def _begin(part: Path, stamps: np.ndarray, size: int) -> np.ndarray:
    """Return the rows (N, 3) of what is done, unchanged and undamaged in a `.part` folder."""
    shape = (len(stamps), 3, size, size)
    rows = np.column_stack([stamps, np.full(len(stamps), ABSENT)])
    pixels, table = part / "images.u8", part / "rows.i8"
    if table.is_file() and pixels.is_file() and pixels.stat().st_size == math.prod(shape):
        before = np.fromfile(table, "<i8")
        if before.size == rows.size:
            before = before.reshape(rows.shape)
            done = (before[:, :2] == stamps).all(1) & (before[:, 2] != ABSENT)
            images = np.memmap(pixels, np.uint8, "r", shape=shape)
            done &= checksums(images) == before[:, 2]
            rows[done] = before[done]
            log.info("going on: %d of %d images are done", done.sum(), len(rows))
            return rows
    shutil.rmtree(part, ignore_errors=True)
    needed, free = math.prod(shape), shutil.disk_usage(part.parent).free
    if free < 1.01 * needed:
        raise UserError(
            f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in "
            f"{part.parent}; give another folder as store=... or a smaller size=..."
        )
    part.mkdir()
    with pixels.open("wb") as file:
        file.truncate(needed)
    return rows


def _fill(part: Path, rows: np.ndarray, decode: Decode, on_error: OnError) -> list[dict]:
    """Decode what is not done; return the rows that cannot be.

    The files are written, not mapped: a disk that fills up is then an error, not a killed process.
    """
    todo, skipped = np.flatnonzero(rows[:, 2] == ABSENT).tolist(), []
    rows.astype("<i8").tofile(part / "rows.i8")
    with (part / "images.u8").open("r+b") as images, (part / "rows.i8").open("r+b") as table:
        for chunk in decode(todo):
            _write(chunk, images, table, rows)
            bad = [found for found in chunk if found.error is not None]
            if bad and on_error == "fail":
                raise UserError(
                    f"{bad[0].error}, or leave such images out: on_error=skip (what is done is "
                    "kept)"
                )
            skipped += bad
    return [{"row": found.row, "error": found.error} for found in skipped]


def _write(chunk: list[Decoded], images: BinaryIO, table: BinaryIO, rows: np.ndarray) -> None:
    """Write pixels, and then what says that they are done."""
    good = [found for found in chunk if found.error is None]
    for row, pixels, _ in good:
        images.seek(row * pixels.nbytes)
        images.write(pixels.tobytes())
        rows[row, 2] = zlib.crc32(pixels.tobytes())
    images.flush()
    for row, *_ in good:
        table.seek(row * rows[row].nbytes)
        table.write(rows[row].astype("<i8").tobytes())
    table.flush()


def _finish(part: Path, folder: Path, rows: np.ndarray, index: dict[str, Any]) -> None:
    """Seal a filled `.part` folder and put it into its place."""
    content = json.dumps(index | {"checksum": seal(index, rows)}, indent=1)
    (part / "index.json").write_text(content + "\n", encoding="utf-8")
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # out of date; those who have it open keep it
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
