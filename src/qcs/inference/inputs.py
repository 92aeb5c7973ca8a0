"""Photos, videos and webcams in.

Videos and webcams need the ffmpeg of imageio-ffmpeg, which comes with `pip install -e '.[faces]'`.
"""

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from qcs.config.errors import UserError, missing_extra
from qcs.data.image_files import IMAGE_SUFFIXES
from qcs.inference.predictor import Item, as_image

log = logging.getLogger(__name__)

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class Key(NamedTuple):
    """Where an image comes from."""

    file: str  # as given, or "webcam 0"
    name: str  # relative to the folder that was given
    frame: int | None = None  # of a video
    fps: float | None = None


def files_of(source: str | int | Sequence[str]) -> list[tuple[str, str]]:
    """Resolve an input into files, or "webcam N", each with a name to write pictures under.

    Args:
        source: a file, a folder (with all folders below it), a glob, a list of such, or the
            number of a webcam.

    Raises:
        UserError: nothing is there, or a folder or glob holds neither images nor videos.
    """
    if isinstance(source, int) or (isinstance(source, str) and source.isdigit()):
        return [(f"webcam {source}", f"webcam-{source}")]
    if not isinstance(source, str):
        return [pair for one in source for pair in files_of(str(one))]
    path = Path(source).expanduser()
    if path.is_file():
        return [(str(path), path.name)]
    if path.is_dir():
        found, top = (f for f in path.rglob("*") if f.is_file()), path
    elif glob.has_magic(source):
        found = (Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        top = Path(*path.parts[: next(i for i, p in enumerate(path.parts) if glob.has_magic(p))])
    else:
        raise UserError(f"nothing to read at input={source}")
    known, others = [], 0
    for file in sorted(found):
        if file.suffix.lower() in IMAGE_SUFFIXES + VIDEOS:
            known.append((str(file), file.relative_to(top).as_posix()))
        else:
            others += 1
    if not known:
        raise UserError(f"input={source} holds no image or video, {others} other files")
    if others:
        log.warning("input=%s: left out %d files that are no images or videos", source, others)
    return known


def open_items(
    files: Sequence[tuple[str, str]], every: int = 1, max_frames: int | None = None
) -> Iterator[Item]:
    """Read images and frames one after the other; what cannot be read is an item with an error.

    Args:
        files: of `files_of`.
        every: of a video, each so manieth frame.
        max_frames: of a video; None for all.

    Raises:
        UserError: `every` is below 1.
    """
    if every < 1:
        raise UserError(f"every must be 1 or more, got {every}")
    for file, name in files:
        if file.startswith("webcam ") or Path(file).suffix.lower() in VIDEOS:
            yield from _frames(file, name, every, max_frames)
            continue
        try:
            yield Item(Key(file, name), as_image(file))
        except ValueError as error:
            yield Item(Key(file, name), error=str(error))


def _frames(file: str, name: str, every: int, max_frames: int | None) -> Iterator[Item]:
    try:
        import imageio
    except ImportError as error:
        raise missing_extra("faces", "a video or a webcam needs") from error
    number, taken = -1, 0
    address = f"<video{file.split()[1]}>" if file.startswith("webcam ") else file
    try:
        with imageio.get_reader(address, format="FFMPEG") as reader:
            fps = reader.get_meta_data().get("fps")
            for number, frame in enumerate(reader):
                if number % every == 0:
                    yield Item(Key(file, name, number, fps), Image.fromarray(frame))
                    taken += 1
                if max_frames is not None and taken >= max_frames:
                    return
    except (OSError, RuntimeError, IndexError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        where = f" after frame {number}" if number >= 0 else ""
        yield Item(Key(file, name), error=f"cannot read {file} as a video{where} ({reason})")
        return
    if number < 0:
        yield Item(Key(file, name), error=f"cannot read {file} as a video (no frames)")
