"""Find the photos, films and webcams that an input names, and read them one after the other.

A file that cannot be read becomes an item with an error, and the others are read.
"""

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.folders import is_junk, warn_left_out
from qcs.data.images import is_image, read_image, upright_rgb
from qcs.inference import video

log = logging.getLogger(__name__)

Input = str | PathLike | np.ndarray | Image.Image


class Source(NamedTuple):
    """A file or a webcam to read from."""

    file: str  # as given, or "webcam 0"
    name: str  # relative to the folder that was given
    kind: Literal["image", "film", "webcam"]
    error: str | None = None  # why it cannot be read, if that is known in advance


class Key(NamedTuple):
    """Where an image comes from."""

    file: str
    name: str
    frame: int | None = None  # of a film or webcam
    seconds: float | None = None  # after its start


class Item(NamedTuple):
    """What `Predictor.stream` takes: an image, or the error that occurred in its place."""

    key: Any
    image: Image.Image | None = None
    error: str | None = None


# -- which files -------------------------------------------------------------------------


def files_of(source: str | int | Sequence[str | int]) -> list[Source]:
    """Find the files that an input names.

    Args:
        source: a file, a folder (with all folders below it), a glob, a list of these, or the
            number of a webcam. A file or folder of that name takes precedence.

    Raises:
        UserError: nothing is there, or the folder or glob holds neither images nor films.
    """
    if not isinstance(source, (str, int)):
        return _of_list(source)
    text = str(source)
    if not text:
        raise UserError("input is empty: name a file, a folder, a glob or the number of a webcam")
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        return _known(_walk(path), text)
    if os.path.lexists(path):
        return [_source(path, path.name)]
    if text.isascii() and text.isdecimal():
        return [Source(f"webcam {int(text)}", f"webcam-{int(text)}", "webcam")]
    if glob.has_magic(text):
        return _known(_matches(path), text)
    raise UserError(f"nothing to read at input={text}")


def _of_list(sources: Sequence[str | int]) -> list[Source]:
    """The files of several inputs; an error in one of them does not stop the others."""
    found: list[Source] = []
    for source in sources:
        try:
            found += files_of(source)
        except UserError as error:
            found.append(Source(str(source), str(source), "image", str(error)))
    if all(file.error for file in found):
        raise UserError(found[0].error if found else "input=[] names nothing to read")
    return found


def _source(path: Path, name: str) -> Source:
    kind: Literal["image", "film"] = "film" if path.suffix.lower() in video.FILMS else "image"
    return Source(str(path), name, kind)


def _walk(top: Path) -> Iterator[Source]:
    """All files below a folder in the order of names; links to folders are followed once."""
    seen, waiting = set(), [top]
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield _source(path, path.relative_to(top).as_posix())
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                log.warning("%s leads to a folder that is read already", terminal(path))
                continue
            seen.add((status.st_dev, status.st_ino))
            names = sorted(filter(lambda name: not is_junk(name), os.listdir(path)), reverse=True)
            waiting += [path / name for name in names]
        except OSError as error:
            yield _unreadable(path, top, error)


def _unreadable(folder: Path, top: Path, error: OSError) -> Source:
    name = folder.relative_to(top).as_posix()
    return Source(str(folder), name, "image", f"cannot read the folder {folder} ({reason(error)})")


def _matches(pattern: Path) -> Iterator[Source]:
    """The files that a glob matches, and the folders in which it could not look."""
    parts = pattern.parts
    top = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    for folder in sorted(map(Path, glob.glob(str(pattern.parent), recursive=True))):
        try:
            if os.path.isdir(folder):
                os.listdir(folder)
        except OSError as error:
            yield _unreadable(folder, top, error)
    for path in sorted(map(Path, glob.glob(str(pattern), recursive=True))):
        if not os.path.isdir(path):
            yield _source(path, path.relative_to(top).as_posix())


def _known(found: Iterable[Source], text: str) -> list[Source]:
    """Leave out the files that are neither images nor films, and warn of them."""
    known, others = [], []
    for source in found:
        name = os.path.basename(source.file)
        if source.error or is_image(name) or source.kind == "film":
            known.append(source)
        else:
            others.append(Path(source.file))
    if not known:
        raise UserError(f"input={text} holds no image or video, {len(others)} other files")
    warn_left_out(text, others)
    return known


# -- reading -----------------------------------------------------------------------------


def open_items(
    files: Sequence[Source], every: int = 1, max_frames: int | None = None
) -> Iterator[Item]:
    """Read images and frames one after the other; an unreadable file is an item with an error.

    Args:
        files: from `files_of`.
        every: read one of so many frames of a film or webcam.
        max_frames: read at most so many frames of each film or webcam; None for all.

    Raises:
        UserError: `every` or `max_frames` is below 1, or PyAV is missing where there are films.
    """
    if every < 1:
        raise UserError(f"every must be 1 or more, got {every}")
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames must be 1 or more, or null for all, got {max_frames}")
    if any(file.kind != "image" for file in files):
        video.library()
    return _items(files, every, max_frames)


def _items(files: Sequence[Source], every: int, max_frames: int | None) -> Iterator[Item]:
    for file in files:
        if file.error or file.kind == "image":
            yield read(file)
        else:
            yield from _frames(file, every, max_frames)


def read(
    source: Source, opened: Callable[[Image.Image], None] | None = None
) -> Item:
    """Read an image; one that cannot be read is an item with an error.

    Args:
        source: of the kind "image".
        opened: see `qcs.data.images.decode`.
    """
    key = Key(source.file, source.name)
    if source.error:
        return Item(key, error=source.error)
    try:
        return Item(key, read_image(source.file, opened))
    except (OSError, ValueError, MemoryError) as error:
        return Item(key, error=f"cannot read {source.file} as an image ({reason(error)})")


def _frames(file: Source, every: int, max_frames: int | None) -> Iterator[Item]:
    key, last = Key(file.file, file.name), None
    try:
        if file.kind == "webcam":
            frames = video.webcam(int(file.file.split()[1]), every, max_frames)
        else:
            frames = video.film(file.file, every, max_frames)
        for frame in frames:
            last = frame.number
            yield Item(key._replace(frame=frame.number, seconds=frame.seconds), frame.image)
    except (UserError, MemoryError) as error:
        where = "" if last is None else f" in full, but to frame {last}"
        why = "too little memory" if isinstance(error, MemoryError) else error
        yield Item(key, error=f"cannot read {file.file} as a video{where} ({why})")


def as_image(image: Input) -> Image.Image:
    """Return a path, a PIL image or an array as an upright RGB image.

    Raises:
        UserError: it cannot be read, or has a wrong shape or type.
    """
    try:
        if isinstance(image, (str, PathLike)):
            return read_image(os.fspath(image))
        if isinstance(image, Image.Image):
            return upright_rgb(image)
    except (OSError, ValueError, MemoryError) as error:
        what = "the PIL image" if isinstance(image, Image.Image) else f"{image} as an image"
        raise UserError(f"cannot read {what} ({reason(error)})") from error
    pixels = np.asarray(image)
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (rgb or pixels.ndim == 2) or not pixels.size:
        raise UserError(
            f"an image of shape {pixels.shape} and type {pixels.dtype}: expected uint8, "
            "(height, width, 3) in the order RGB or (height, width)"
        )
    return Image.fromarray(pixels).convert("RGB")


def reason(error: Exception) -> str:
    """Return what went wrong in a few words, without the name of the file."""
    if isinstance(error, MemoryError):
        return "too little memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
