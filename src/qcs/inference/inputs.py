"""Read the images that an input names, one after the other.

A file that cannot be read becomes an item with an error, and the others are read.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from qcs.config.errors import UserError, reason
from qcs.data.images import decode, read_image, upright_rgb
from qcs.inference import tars, video
from qcs.inference.sources import Source, Stamp, inside

Input = str | PathLike | np.ndarray | Image.Image


class Key(NamedTuple):
    """Where an image comes from."""

    file: str
    name: str
    frame: int | None = None  # of a film or webcam
    seconds: float | None = None  # after its start
    member: str | None = None  # of a tar
    stamp: Stamp | None = None  # of the file


Place = TypeVar("Place", Key, Source)


class Item(NamedTuple):
    """What `Predictor.stream` takes: an image, or the error that occurred in its place."""

    key: Any
    image: Image.Image | None = None
    error: str | None = None


def open_items(
    files: Sequence[Source],
    every: int = 1,
    max_frames: int | None = None,
    done: Callable[[Source], bool] = lambda source: False,
    later: bool = False,
) -> Iterator[Item | Source]:
    """Read images and frames one after the other; an unreadable file is an item with an error.

    Args:
        files: from `files_of`.
        every: read one of so many frames of a film or webcam.
        max_frames: read at most so many frames of each film or webcam; None for all.
        done: whether to leave out an image or film, of which the stamp is known.
        later: leave the images, but not the frames, to be read by whoever takes them (`read`).

    Raises:
        UserError: `every` or `max_frames` is below 1, or PyAV is missing where there are films.
    """
    if every < 1:
        raise UserError(f"every must be 1 or more, got {every}")
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames must be 1 or more, or null for all, got {max_frames}")
    if any(file.kind in ("film", "webcam") for file in files):
        video.library()
    return _items(to_read(files, done), every, max_frames, later)


def _items(
    sources: Iterable[Source], every: int, max_frames: int | None, later: bool
) -> Iterator[Item | Source]:
    for source in sources:
        if source.kind == "image":
            yield source if later else read(source)
        else:
            yield from _frames(source, every, max_frames)


def to_read(files: Iterable[Source], done: Callable[[Source], bool]) -> Iterator[Source]:
    """Stamp the files, put the images of a tar into its place, and leave out what is done."""
    for file in files:
        if not file.error:
            file = file._replace(stamp=stamp(file.file))
        if file.kind == "tar":
            yield from _images_of(file, done)
        elif not done(file):
            yield file


def stamp(file: str) -> Stamp | None:
    """A pair of numbers that changes when a file does; None where there is no file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # ValueError: a zero byte
        return None
    return status.st_size, max(min(status.st_mtime_ns, 2**63 - 1), -(2**63))


def _images_of(tar: Source, done: Callable[[Source], bool]) -> Iterator[Source]:
    """The images of a tar, each with its file in memory, and an error where the tar is damaged."""
    try:
        for member, content in tars.images(tar.file):
            name = f"{tar.name}/{inside(member)}"
            source = tar._replace(kind="image", member=member, name=name)
            if done(source):
                continue
            try:
                yield source._replace(data=content())
            except (UserError, MemoryError) as error:
                why = _unreadable_image(source, error)
                yield _blamed(source, error)._replace(error=why)
    except (UserError, OSError) as error:
        why = f"cannot read {tar.file} as a tar ({reason(error)})"
        if not done(broken := _blamed(tar, error)._replace(kind="image", error=why)):
            yield broken


def read(source: Source, opened: Callable[[Image.Image], None] | None = None) -> Item:
    """Read an image; one that cannot be read is an item with an error.

    Args:
        source: of the kind "image".
        opened: see `qcs.data.images.decode`.
    """
    key = _key(source)
    if source.error:
        return Item(key, error=source.error)
    try:
        if source.data is None:
            return Item(key, read_image(source.file, opened))
        return Item(key, decode(BytesIO(source.data), opened))
    except (OSError, ValueError, MemoryError) as error:
        return Item(_blamed(key, error), error=_unreadable_image(source, error))


def _blamed(place: Place, error: Exception) -> Place:
    """Take the stamp away where the file is not to blame, so that an archive tries it again.

    Memory may have been too small, or the system refused to read it: only its errors have numbers.
    """
    causes = [cause for cause in (error, error.__cause__) if cause]
    system = any(isinstance(cause, OSError) and cause.errno is not None for cause in causes)
    memory = any(isinstance(cause, MemoryError) for cause in causes)
    return place._replace(stamp=None) if system or memory else place


def _key(source: Source) -> Key:
    return Key(source.file, source.name, member=source.member, stamp=source.stamp)


def _unreadable_image(source: Source, error: Exception) -> str:
    what = source.file if source.member is None else f"{source.member} in {source.file}"
    return f"cannot read {what} as an image ({reason(error)})"


def _frames(file: Source, every: int, max_frames: int | None) -> Iterator[Item]:
    key, last = _key(file), None
    try:
        if file.kind == "webcam":
            frames = video.webcam(int(file.file.split()[1]), every, max_frames)
        else:
            frames = video.film(file.file, every, max_frames)
        for frame in frames:
            last = frame.number
            yield Item(key._replace(frame=frame.number, seconds=frame.seconds), frame.image)
    except (UserError, MemoryError) as error:
        what = f"cannot read {file.file} as a video"
        if last is not None:
            what = f"the video {file.file} could be read only as far as frame {last}"
        why = "too little memory" if isinstance(error, MemoryError) else error
        yield Item(_blamed(key, error), error=f"{what} ({why})")


def as_item(image: Input) -> Item | Source:
    """Return a path as a source, which a worker can read, and anything else as an image."""
    if isinstance(image, (str, PathLike)):
        return Source(os.fspath(image), os.fspath(image), "image")
    return Item(None, as_image(image))


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
