"""What an image file, a junk file and a folder's content are, for every source and for predict.

An image file is one with a suffix of `IMAGE_SUFFIXES`, in capitals or not. Junk is what systems
leave beside a user's files; it is passed over without a word. Everything else that is not used is
named. Links are followed, and each folder is entered once, so that a ring of links ends.
"""

import logging
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

from PIL import features

from qcs.config.errors import UserError

log = logging.getLogger(__name__)

try:  # an extra that adds a format to Pillow
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

_AVIF = bool(features.check("avif")) if "avif" in features.modules else False
_HEIF = pillow_heif is not None
# The decoders that Pillow may use, whatever a file is called: none of them starts a program, as
# EPS does (Ghostscript), and each is for photographs.
FORMATS = (
    ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") + ("AVIF",) * _AVIF + ("HEIF",) * _HEIF
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
IMAGE_SUFFIXES = (
    (".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm")
    + (".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
    + (".avif",) * _AVIF
    + HEIF_SUFFIXES * _HEIF
)
JUNK = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
SHOWN = 5  # names that a warning gives


def is_image(name: str | PurePath) -> bool:
    """Whether a file's name is that of an image which this Pillow can read."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left there by a system or a tool."""
    return name.startswith(".") or name.lower() in JUNK


def same_name(name: str) -> str:
    """What two spellings of one class or folder share: without case, outer and double blanks."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def printable(text: object) -> str:
    """A name for the screen: control characters and bytes that are no text become escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a pipe, socket or device is refused and never waited for.

    Raises:
        OSError: it is missing or may not be read.
        UserError: it is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError("it is not a regular file")
    return os.fdopen(number, "rb")


@dataclass
class Listing:
    """What lies below a folder, junk apart.

    Args:
        files: regular files, sorted.
        problems: a sentence for each link to nothing, and each pipe, socket or device.
        closed: a sentence for each folder that cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def list_files(top: str | Path) -> Listing:
    """Find all files below a folder, sorted; nothing is opened."""
    found, seen, waiting = Listing(), set(), [os.fspath(top)]
    while waiting:
        folder = waiting.pop()
        try:
            place = os.stat(folder)
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not is_junk(entry.name):
                        _sort_in(entry, found, waiting)
        except OSError as error:
            found.closed.append(f"the folder {folder} cannot be read ({error.strerror})")
    found.files.sort()
    return found


def _sort_in(entry: os.DirEntry, found: Listing, waiting: list[str]) -> None:
    try:
        kind = stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:  # a link to nothing or to itself, or a file that has just gone
        found.problems.append(f"{entry.path} cannot be read ({error.strerror})")
        return
    if kind == stat.S_IFDIR:
        waiting.append(entry.path)
    elif kind == stat.S_IFREG:
        found.files.append(Path(entry.path))
    else:
        found.problems.append(f"{entry.path} is not a regular file")


def images_below(folder: str | Path) -> list[Path]:
    """Image files anywhere below a folder, sorted; whatever else lies there is named and counted.

    Raises:
        UserError: a folder cannot be read.
    """
    found = list_files(folder)
    if found.closed:
        raise UserError(f"{found.closed[0]}; allow it or move the folder elsewhere")
    images = [file for file in found.files if is_image(file.name)]
    warn_left_out(folder, [f for f in found.files if not is_image(f.name)], found.problems)
    return images


def warn_left_out(where: object, files: Sequence[Path], problems: Iterable[str] = ()) -> None:
    """Name and count the files of a folder that are not used, and say what would read HEIC."""
    for problem in problems:
        log.warning("left out: %s", printable(problem))
    if not files:
        return
    names = ", ".join(printable(file.name) for file in files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    heif = not _HEIF and any(file.suffix.lower() in HEIF_SUFFIXES for file in files)
    advice = "; HEIC files are read once pillow-heif is installed: pip install pillow-heif"
    log.warning(
        "left out of %s: %d files that are no images (%s%s)%s",
        printable(where),
        len(files),
        names,
        more,
        advice if heif else "",
    )
