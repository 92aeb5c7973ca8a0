"""What an image file, a junk file and a folder's content are, for every source and for predict.

An image file is one with a suffix of `IMAGE_SUFFIXES`, in capitals or not. Junk is what systems
leave beside a user's files; it is passed over without a word. Everything else that is not used is
named. Links are followed, but not into a folder that they lie in.
"""

import logging
import os
import stat
import unicodedata
from collections import Counter
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
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHOWN = 5  # names that a warning gives
MOST_VISITS = 20  # of one folder, by links


def is_image(name: str | PurePath) -> bool:
    """Whether a file's name is that of an image which this Pillow can read."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left there by a system or a tool."""
    return name.startswith(".") or name.lower() in JUNK


def same_name(name: str) -> str:
    """What two spellings of one class or folder share: without case, outer and double blanks."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def split_of(name: str) -> str | None:
    """The split that a folder or a cell of a table names, in capitals or not, or None."""
    return SPLIT_FOLDERS.get(same_name(name))


def printable(text: object) -> str:
    """A name for the screen: control characters and bytes that are no text become escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: a file's name may hold any bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def expanded(path: str | Path) -> Path:
    """A path whose leading ~ is the user's home.

    Raises:
        UserError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the whole path") from error


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
    found, visits = Listing(), Counter()
    waiting: list[tuple[str, tuple]] = [(os.fspath(top), ())]
    while waiting:
        folder, around = waiting.pop()
        try:
            place = os.stat(folder)
            here = (place.st_dev, place.st_ino)
            visits[here] += 1
            if here in around or visits[here] > MOST_VISITS:
                found.problems.append(f"{folder} is a link into a ring of folders")
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_junk(entry.name):
                        continue
                    if _is_folder(entry, found):
                        waiting.append((entry.path, (*around, here)))
        except OSError as error:
            found.closed.append(f"the folder {folder} cannot be read ({error.strerror})")
    found.files.sort()
    return found


def _is_folder(entry: os.DirEntry, found: Listing) -> bool:
    """Whether an entry is a folder; what is none is put into the listing."""
    if entry.is_file(follow_symlinks=False):  # most are, and this asks the disk nothing more
        found.files.append(Path(entry.path))
        return False
    try:
        kind = stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:  # a link to nothing or to itself, or a file that has just gone
        found.problems.append(f"{entry.path} cannot be read ({error.strerror})")
        return False
    if kind == stat.S_IFREG:
        found.files.append(Path(entry.path))
    elif kind != stat.S_IFDIR:
        found.problems.append(f"{entry.path} is not a regular file")
    return kind == stat.S_IFDIR


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


def warn_left_out(
    where: object,
    files: Sequence[Path],
    problems: Iterable[str] = (),
    kind: str = "files that are no images",
) -> None:
    """Name and count what is not used of a folder, and say what would read HEIC."""
    for problem in problems:
        log.warning("left out: %s", printable(problem))
    if not files:
        return
    names = ", ".join(printable(file.name) for file in files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    heif = not _HEIF and any(file.suffix.lower() in HEIF_SUFFIXES for file in files)
    advice = "; HEIC files are read once pillow-heif is installed: pip install pillow-heif"
    where, advice = printable(where), advice if heif else ""
    log.warning("left out of %s: %d %s (%s%s)%s", where, len(files), kind, names, more, advice)
