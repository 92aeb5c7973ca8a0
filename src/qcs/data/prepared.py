"""Prepared images of a data set: each is decoded, upright, RGB and resized once, into a store.

`python -m qcs.prepare` makes the store, and training looks for it. A preparation that was stopped
goes on where it was, after what it finds has been verified; a store that is damaged or out of date
is made again.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.cache import cache_folder
from qcs.data.decoding import Decoded, decode_all
from qcs.data.folders import expanded
from qcs.data.manifest import Manifest
from qcs.data.store import ABSENT, VERSION, Store, StoreWriter, open_store
from qcs.data.transforms import resized

if sys.platform != "win32":  # there, two preparations of the same images are not kept apart
    import fcntl

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]


def base(folder: str | Path) -> Path:
    """Where stores are kept: a folder, or for "auto" `prepared` in the user's cache folder."""
    return cache_folder() / "prepared" if folder == "auto" else expanded(folder)


def folder_of(manifest: Manifest, size: int, base: Path) -> Path:
    """The folder of a manifest's images of S = size; other files or boxes have another one."""
    text = f"{VERSION} {size} {manifest.root.resolve()}"
    key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    key.update("\n".join(manifest.paths.tolist()).encode("utf-8", "surrogatepass"))
    if manifest.boxes is not None:
        key.update(np.ascontiguousarray(manifest.boxes, dtype=np.int64).tobytes())
    return base / f"{manifest.root.stem[:50]}-{size}px-{key.hexdigest()}"


def signatures(manifest: Manifest) -> np.ndarray:
    """The signature of each image's file, (N, 2) int64; -1 where there is no such file."""
    read, found = manifest.images.signature, []
    for path in manifest.paths.tolist():
        try:
            found.append(read(path))
        except (OSError, KeyError):
            found.append((ABSENT, ABSENT))
    return np.array(found, dtype=np.int64)


def find(
    manifest: Manifest, size: int, base: Path, command: str = "python -m qcs.prepare"
) -> Store | None:
    """Open the store of a whole manifest; where it cannot be used, say why and return None.

    Args:
        manifest: as its source reads it, all splits.
        size: S, the pixels of both sides.
        base: folder of the stores.
        command: the whole command that prepares these images, for the message.
    """
    folder = folder_of(manifest, size, base)
    if not os.path.isfile(folder / "index.json"):
        log.info("no prepared images, each is decoded anew: `%s` is faster", command)
        return None
    try:
        store = open_store(folder, manifest.paths, size, signatures(manifest))
    except UserError as error:
        sentence = "prepared images are not used and each is decoded anew: %s; run `%s` again"
        log.warning(sentence, error, command)
        return None
    if left_out := len(manifest) - len(store.kept):
        log.warning("%d images that cannot be decoded are left out: %s", left_out, terminal(folder))
    log.info("prepared images: %s", terminal(folder))
    return store


def skipped_images(folder: Path) -> list[dict[str, Any]]:
    """The images that a store left out: row, path and error of each."""
    return json.loads((folder / "index.json").read_bytes())["skipped"]


def prepare(
    manifest: Manifest,
    size: int,
    base: Path,
    on_error: OnError = "fail",
    num_workers: int = 2,
    progress: bool = True,
) -> Path:
    """Make the store of a manifest, go on making it, or repair it; return its folder.

    Args:
        manifest: as its source reads it, all splits.
        size: S, the pixels of both sides.
        base: folder of the stores.
        on_error: "fail" at the first image that cannot be decoded, or "skip" and list them.
        num_workers: processes that decode; 0 decodes in this one.
        progress: whether to show a progress bar.

    Raises:
        UserError: an image cannot be decoded (what was done is kept), or none can.
        UserError: not enough space, or another process is preparing the same images.
    """
    if size < 1 or num_workers < 0:
        raise UserError(f"size must be 1 or more, num_workers 0 or more: {size}, {num_workers}")
    folder, found = folder_of(manifest, size, base), signatures(manifest)
    title = "preparing" if progress else None
    if _is_current(folder, manifest, size, found, on_error):  # it may be another user's
        return folder
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock")):
            writer = StoreWriter(folder, found, size)
            work = partial(_prepared, size=size)
            decoded = decode_all(manifest, work, writer.missing(), num_workers, title)
            with closing(decoded) as images:
                writer.finish(_write(writer, images, manifest, on_error))
    except OSError as error:
        raise UserError(
            f"cannot write prepared images into {base} ({error.strerror or error}); what is done "
            "is kept, so make room or allow it and give the command again, or another store=..."
        ) from error
    return folder


def _prepared(image: Image.Image, size: int) -> np.ndarray:
    return resized(image, size).numpy()


def _is_current(
    folder: Path, manifest: Manifest, size: int, signatures: np.ndarray, on_error: OnError
) -> bool:
    """Whether there is nothing to do."""
    if not os.path.isfile(folder / "index.json"):
        return False
    try:
        store = open_store(folder, manifest.paths, size, signatures)
    except UserError as error:
        log.warning("prepared anew: %s", error)
        return False
    return on_error == "skip" or len(store.kept) == len(manifest)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the system frees it when the process ends, killed or not."""
    with path.open("w") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process is preparing these images ({path})") from error
        yield


def _write(
    writer: StoreWriter, images: Iterator[list[Decoded]], manifest: Manifest, on_error: OnError
) -> list[dict[str, Any]]:
    """Write the images as they come; return the row, path and error of those that are skipped.

    Raises:
        UserError: an image cannot be decoded and may not be skipped, or none can be decoded.
    """
    skipped = []
    for chunk in images:
        writer.write([(found.row, found.value) for found in chunk if found.error is None])
        for found in chunk:
            if found.error is None:
                continue
            if on_error == "fail":
                raise UserError(
                    f"{found.error}, or leave such images out: on_error=skip (what is done is kept)"
                )
            path = str(manifest.paths[found.row])
            skipped.append({"row": found.row, "error": found.error, "path": path})
    if len(skipped) == len(manifest):
        raise UserError(f"no image of {manifest.root} can be decoded: {skipped[0]['error']}")
    return skipped
