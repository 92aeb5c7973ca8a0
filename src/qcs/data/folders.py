"""What lies in a folder of the user's: images, junk, and other files, and what names mean there.

Junk is what operating systems and tools leave beside a user's files; it is passed over without a
word. Everything else that is not used is named. Links are followed, but a link to a folder that
it lies in is not.
"""

import logging
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.images import HAS_HEIF, HEIF_SUFFIXES, is_image

log = logging.getLogger(__name__)

JUNK = {
    "__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "ehthumbs.db",
    "icon\r", "lost+found", "system volume information", "thumbs.db",
}  # fmt: skip
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHOWN = 5  # the names that a warning gives
MAX_VISITS = 20  # of one folder, which several links may lead to


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left there by a system or a tool."""
    return name.startswith(".") or name.lower() in JUNK


def same_name(name: str) -> str:
    """What all spellings of a class or folder have in common: no capitals, no superfluous blanks.

    Two names are the same when this function returns the same for both.
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def split_of(name: str) -> str | None:
    """The split that a folder or a cell of a table names, in capitals or not, or None."""
    return SPLIT_FOLDERS.get(same_name(name))


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; the name of a file may hold any bytes."""
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


def sync(folder: Path) -> None:
    """Let new, renamed and removed names of a folder outlast a power failure, where systems can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error of the operating system about this path into a UserError.

    Raises:
        UserError: it is missing, or may not be read.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def require_path(path: str | None, name: str, hint: str, files: Sequence[str] = ()) -> Path:
    """Return the path of a data set: a folder, or a file with one of these suffixes.

    Args:
        name: of the data set, for messages.
        hint: what is expected at the path, for messages.
        files: suffixes, where the data set may be a single file.

    Raises:
        UserError: it was not given, or nothing is there; says what is expected.
    """
    if path is None:
        raise UserError(f"dataset.path is not set: {name} is read from {hint}")
    found = expanded(path)
    with readable(found):
        if found.is_dir() or (found.is_file() and found.suffix.lower() in files):
            return found
    raise UserError(f"nothing to read at dataset.path={path}: {name} is {hint}")


@dataclass
class Listing:
    """What lies below a folder, without the junk.

    Args:
        files: regular files, sorted.
        problems: a sentence for each link that leads nowhere, and each pipe, socket or device.
        unreadable: a sentence for each folder that cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def list_files(top: str | Path) -> Listing:
    """Find all files below a folder, sorted; none of them is opened."""
    found = Listing()
    visits: Counter[tuple[int, int]] = Counter()
    # Folders to be read, each with those that it lies in.
    waiting: list[tuple[str, tuple]] = [(os.fspath(top), ())]
    while waiting:
        folder, parents = waiting.pop()
        try:
            place = os.stat(folder)
            here = (place.st_dev, place.st_ino)
            visits[here] += 1
            if here in parents or visits[here] > MAX_VISITS:
                found.problems.append(f"{folder} is a link into a ring of folders")
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_junk(entry.name):
                        continue
                    if _is_folder(entry, found):
                        waiting.append((entry.path, (*parents, here)))
        except OSError as error:
            found.unreadable.append(f"the folder {folder} cannot be read ({error.strerror})")
    found.files.sort()
    return found


def _is_folder(entry: os.DirEntry, found: Listing) -> bool:
    """Whether an entry is a folder; anything else is put into the listing."""
    if entry.is_file(follow_symlinks=False):  # known without asking the system
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
    """All image files below a folder, sorted; whatever else lies there is named and counted.

    Raises:
        UserError: a folder cannot be read.
    """
    found = list_files(folder)
    if found.unreadable:
        raise UserError(f"{found.unreadable[0]}; allow it or move the folder elsewhere")
    images = [file for file in found.files if is_image(file.name)]
    warn_left_out(folder, [f for f in found.files if not is_image(f.name)], found.problems)
    return images


def warn_left_out(
    where: object,
    files: Sequence[Path],
    problems: Iterable[str] = (),
    kind: str = "files that are no images",
) -> None:
    """Name and count what is not used of a folder, and say what would read HEIC files."""
    for problem in problems:
        log.warning("left out: %s", terminal(problem))
    if not files:
        return
    names = ", ".join(terminal(file.name) for file in files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    heif = not HAS_HEIF and any(file.suffix.lower() in HEIF_SUFFIXES for file in files)
    advice = "; HEIC files are read once pillow-heif is installed: pip install pillow-heif"
    where, advice = terminal(where), advice if heif else ""
    log.warning("left out of %s: %d %s (%s%s)%s", where, len(files), kind, names, more, advice)
