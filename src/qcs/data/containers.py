"""What holds the image files of a data set: a folder, a zip file, or a CSV of pixels.

Each container opens an image by its path in it, and has a signature for it: a pair of numbers that
changes when the image does, read without the image itself.
"""

import os
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qcs.config.errors import UserError
from qcs.data.images import open_file

# What opening or decoding a file that is missing or damaged may raise.
BROKEN = (OSError, KeyError, ValueError, IndexError, OverflowError)
MAX_BYTES = 1 << 30  # of a file in a zip, which is read into memory


class FolderImages:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading."""
        return open_file(os.path.join(self.root, path))

    def signature(self, path: str) -> tuple[int, int]:
        """The file's bytes, and the time of its last change in nanoseconds."""
        stat = os.stat(os.path.join(self.root, path))
        return stat.st_size, stat.st_mtime_ns


class ZipImages:
    """Members of a zip file, read without unpacking it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archive: zipfile.ZipFile | None = None
        self._owner = -1  # the process that opened it

    def _opened(self) -> zipfile.ZipFile:
        """The zip file, opened once in each process: after a fork two would move one position."""
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive, self._owner = zipfile.ZipFile(self.root), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise UserError(
                    f"{self.root} is not a whole zip file ({error}); copy it again"
                ) from error
        return self._archive

    def names(self) -> list[str]:
        """The members' names as the zip gives them; none of them is ever written to the disk."""
        return self._opened().namelist()

    def open(self, path: str) -> BinaryIO:
        """Read one member into memory."""
        if self._opened().getinfo(path).file_size > MAX_BYTES:
            raise UserError(f"it is larger than {MAX_BYTES >> 30} GB in the zip")
        try:
            return BytesIO(self._opened().read(path))
        except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(str(error).strip() or "its part of the zip is damaged") from error

    def signature(self, path: str) -> tuple[int, int]:
        """The member's bytes and checksum."""
        info = self._opened().getinfo(path)
        return info.file_size, info.CRC

    def __getstate__(self) -> dict:
        return {"root": self.root, "_archive": None, "_owner": -1}


class PixelTable:
    """Kaggle's FER2013 tables: one 48x48 grey image a line, as a quoted list of 2,304 numbers.

    The path of an image is "line 2" for the first one below the header. Only the places at which
    the lines begin are kept in memory.
    """

    SIDE = 48

    def __init__(self, root: Path) -> None:
        self.root = root
        self._starts: np.ndarray | None = None  # of each line, in bytes, and the end of the last

    def open(self, path: str) -> BinaryIO:
        """Read one line's pixels, as a PGM file."""
        if self._starts is None:
            self._starts = self._line_starts()
        line = int(path.removeprefix("line "))
        with self.root.open("rb") as file:
            file.seek(int(self._starts[line - 1]))
            text = file.read(int(self._starts[line] - self._starts[line - 1]))
        numbers = max(text.split(b","), key=len).strip(b' "\r\n')
        pixels = np.array(numbers.split(), dtype=np.int64)
        if len(pixels) != self.SIDE**2 or pixels.min() < 0 or pixels.max() > 255:
            raise UserError(f"{path} does not hold {self.SIDE**2} numbers from 0 to 255")
        return BytesIO(b"P5 48 48 255\n" + pixels.astype(np.uint8).tobytes())

    def _line_starts(self) -> np.ndarray:
        data, part = np.memmap(self.root, mode="r"), 1 << 24
        ends = [
            np.flatnonzero(data[i : i + part] == ord("\n")) + i for i in range(0, len(data), part)
        ]
        return np.concatenate([[0], *(e + 1 for e in ends), [len(data)]])

    def signature(self, path: str) -> tuple[int, int]:
        """The table's bytes, and the time of its last change in nanoseconds."""
        stat = self.root.stat()
        return stat.st_size, stat.st_mtime_ns


Container = FolderImages | ZipImages | PixelTable


def container(root: Path) -> Container:
    """The reader of a folder, a .zip or a .csv of pixels."""
    if root.suffix.lower() == ".zip" and root.is_file():
        return ZipImages(root)
    if root.suffix.lower() == ".csv" and root.is_file():
        return PixelTable(root)
    return FolderImages(root)
