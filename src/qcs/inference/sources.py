"""Find the photos, films, tars and webcams that an input names."""

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from qcs.config.errors import UserError, reason
from qcs.config.escape import terminal
from qcs.data.folders import is_junk, warn_left_out
from qcs.data.images import is_image
from qcs.inference import lists, tars, video

log = logging.getLogger(__name__)

Stamp = tuple[int, int]  # a file's bytes, and the time of its last change in nanoseconds
MOST_BRACES = 1_000_000  # names that a range in braces may stand for


class Source(NamedTuple):
    """A file or a webcam to read from."""

    file: str  # as given, or "webcam 0"
    name: str  # relative to the folder that was given; never leads out of a folder
    kind: Literal["image", "film", "webcam", "tar"]
    error: str | None = None  # why it cannot be read, if that is known in advance
    member: str | None = None  # the name of an image in the tar
    data: bytes | None = None  # that image's file
    stamp: Stamp | None = None  # as it was before the file was read


def files_of(source: str | int | Sequence[str | int], path_column: str = "path") -> list[Source]:
    """Find the files that an input names.

    Args:
        source: a file, a folder (with all folders below it), a glob, names in braces as
            {000..015}, a list file (.txt, .csv or .parquet), a list of these, or the number of a
            webcam. A file or folder of that name takes precedence.
        path_column: the column of paths in a .csv or .parquet.

    Raises:
        UserError: nothing is there, or the folder or glob holds neither images nor films.
    """
    if not isinstance(source, (str, int)):
        return _of_list(source, path_column)
    text = str(source)
    if not text:
        raise UserError("input is empty: name a file, a folder, a glob or the number of a webcam")
    path = Path(os.path.expanduser(text))
    if lists.is_list(path):
        return [_listed(path, entry) for entry in lists.entries(path, path_column)]
    if os.path.isdir(path):
        return _known(_walk(path), text)
    if os.path.lexists(path):
        return [_source(path, path.name)]
    if text.isascii() and text.isdecimal():
        return [Source(f"webcam {int(text)}", f"webcam-{int(text)}", "webcam")]
    if (names := _braces(text)) != [text]:
        return _of_list(names, path_column)
    if glob.has_magic(text):
        return _known(_matches(path), text)
    raise UserError(f"nothing to read at input={text}")


def _of_list(sources: Sequence[str | int], path_column: str) -> list[Source]:
    """The files of several inputs; an error in one of them does not stop the others."""
    found: list[Source] = []
    for source in sources:
        try:
            found += files_of(source, path_column)
        except UserError as error:
            found.append(Source(str(source), inside(str(source)), "image", str(error)))
    if all(file.error for file in found):
        raise UserError(found[0].error if found else "input=[] names nothing to read")
    return found


def _listed(path: Path, entry: lists.Entry) -> Source:
    name = inside(entry.path)
    if entry.error:
        return Source(entry.path, name, "image", entry.error)
    file = Path(entry.path)
    if entry.path.startswith("~/"):  # no shell has expanded it
        file = file.expanduser()
    return _source(path.parent / file, name)


def inside(path: str) -> str:
    """A relative path that stays below a folder, whatever the given one says."""
    pure = PurePath(path)
    return "/".join(part for part in pure.parts if part not in (pure.anchor, "..")) or "unnamed"


def _braces(text: str) -> list[str]:
    """The names that {000..015} and {a,b} stand for, as in a shell."""
    found = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}|\{([^{}]*,[^{}]*)\}", text)
    if not found:
        return [text]
    if found[3] is not None:
        middles = found[3].split(",")
    else:
        numbers = range(int(found[1]), int(found[2]) + 1)
        if not 0 < len(numbers) <= MOST_BRACES:
            raise UserError(f"{found[0]} in input={text} is not a range of 1 to {MOST_BRACES:,}")
        middles = [f"{number:0{len(found[1])}d}" for number in numbers]
    before, after = text[: found.start()], text[found.end() :]
    return [name for middle in middles for name in _braces(f"{before}{middle}{after}")]


def _source(path: Path, name: str) -> Source:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(tars.COMPRESSED):
        return Source(str(path), name, "image", f"{path} is a compressed tar: decompress it first")
    kind: Literal["image", "film", "tar"] = "film" if suffix in video.FILMS else "image"
    return Source(str(path), name, "tar" if suffix == tars.SUFFIX else kind)


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
    """Leave out the files that are no images, films or tars, and warn of them."""
    known, others = [], []
    for source in found:
        name = os.path.basename(source.file)
        if source.error or is_image(name) or source.kind != "image":
            known.append(source)
        else:
            others.append(Path(source.file))
    if not known:
        raise UserError(f"input={text} holds no image or video, {len(others)} other files")
    warn_left_out(text, others)
    return known
