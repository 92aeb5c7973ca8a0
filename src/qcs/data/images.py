"""Where the images of a data set lie, and how one becomes RGB."""

import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qcs.config.errors import UserError
from qcs.data.image_files import FORMATS, open_file

# What the readers below raise for a missing or broken file.
BROKEN = (OSError, KeyError, ValueError, IndexError, OverflowError)
# Pixels of one image: above the 108 megapixels of phones, and 360 MB as RGB. It is checked in the
# header, before anything is decoded; Pillow's own warning at 89 megapixels would say it twice.
MAX_PIXELS = 120_000_000
MAX_BYTES = 1 << 30  # of a file in a zip, which is read into memory
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(file: BinaryIO) -> Image.Image:
    """Decode an image as `upright_rgb`; of a moving picture the first frame.

    Raises:
        UserError: it is not a whole image of `FORMATS`, or as `upright_rgb`.
    """
    with _sentences(), Image.open(file, formats=FORMATS) as image:
        return upright_rgb(image)


def read_image(path: str | Path) -> Image.Image:
    """Read a regular file as `decode` does.

    Raises:
        OSError: it is missing or may not be read.
        UserError: it cannot be decoded.
    """
    with open_file(path) as file:
        return decode(file)


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn what Pillow raises at a file that is damaged or no image, which may be anything."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"it is not an image of the formats {', '.join(FORMATS)}") from error
    except Exception as error:
        raise UserError(str(error).strip() or type(error).__name__) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an open image into upright RGB, as every command and the API see it.

    EXIF orientation is applied, 16-bit grey is scaled to 8, transparency is laid on white.

    Raises:
        UserError: no pixels, more than `MAX_PIXELS`, numbers without a known range, a kind of
            pixels that is not converted, or the rest of its file is damaged.
    """
    if image.format == "EPS":  # an open one is decoded by Ghostscript, which runs its program
        raise UserError("EPS is a program, which is not run here; save it as PNG")
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise UserError(
            f"it has {width}x{height} pixels, expected 1 to {MAX_PIXELS // 1_000_000} million; "
            "make it smaller"
        )
    with _sentences():
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError("32-bit float pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow before 11 reads it as 32-bit
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise UserError("integer pixels outside 0 to 65535; save it with 8 or 16 bits")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class FolderImages:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading."""
        return open_file(os.path.join(self.root, path))

    def stamp(self, path: str) -> tuple[int, int]:
        """Bytes and nanoseconds of the last change of what holds the image."""
        stat = os.stat(os.path.join(self.root, path))
        return stat.st_size, stat.st_mtime_ns


class ZipImages:
    """Members of a zip file, read in place; each process opens its own handle."""

    def __init__(self, root: Path) -> None:
        self.root, self._pid, self._zip = root, -1, None

    def _archive(self) -> zipfile.ZipFile:
        if self._pid != os.getpid():  # a handle shared over a fork shares its file position
            try:
                self._zip, self._pid = zipfile.ZipFile(self.root), os.getpid()
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise UserError(
                    f"{self.root} is not a whole zip file ({error}); copy it again"
                ) from error
        return self._zip

    def names(self) -> list[str]:
        """The members' names as the zip gives them; none of them is ever written to the disk."""
        return self._archive().namelist()

    def open(self, path: str) -> BinaryIO:
        """Read one member into memory."""
        if self._archive().getinfo(path).file_size > MAX_BYTES:
            raise UserError(f"it is larger than {MAX_BYTES >> 30} GB in the zip")
        try:
            return BytesIO(self._archive().read(path))
        except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(str(error).strip() or "its part of the zip is damaged") from error

    def stamp(self, path: str) -> tuple[int, int]:
        """Bytes and checksum of the member."""
        info = self._archive().getinfo(path)
        return info.file_size, info.CRC

    def __getstate__(self) -> dict:
        return {"root": self.root, "_pid": -1, "_zip": None}


class PixelTable:
    """Kaggle's FER2013 tables: one 48x48 grey image a line, as a quoted list of 2,304 numbers.

    The path of an image is "line 2" for the first below the header. Only where lines begin is
    kept in memory.
    """

    SIDE = 48

    def __init__(self, root: Path) -> None:
        self.root, self._starts = root, None

    def open(self, path: str) -> BinaryIO:
        """Read one line's pixels, as a PGM file."""
        if self._starts is None:
            data = np.memmap(self.root, mode="r")
            ends = [np.flatnonzero(data[i : i + (1 << 24)] == 10) + i
                    for i in range(0, len(data), 1 << 24)]  # fmt: skip
            self._starts = np.concatenate([[0], *(e + 1 for e in ends), [len(data)]])
        line = int(path.removeprefix("line "))
        with self.root.open("rb") as file:
            file.seek(int(self._starts[line - 1]))
            text = file.read(int(self._starts[line] - self._starts[line - 1]))
        numbers = max(text.split(b","), key=len).strip(b' "\r\n')
        pixels = np.array(numbers.split(), dtype=np.int64)
        if len(pixels) != self.SIDE**2 or pixels.min() < 0 or pixels.max() > 255:
            raise UserError(f"{path} does not hold {self.SIDE**2} numbers from 0 to 255")
        return BytesIO(b"P5 48 48 255\n" + pixels.astype(np.uint8).tobytes())

    def stamp(self, path: str) -> tuple[int, int]:
        """Bytes and nanoseconds of the last change of the table."""
        stat = self.root.stat()
        return stat.st_size, stat.st_mtime_ns


Images = FolderImages | ZipImages | PixelTable


def images_of(root: Path) -> Images:
    """The reader for a folder, a .zip or a .csv of pixels."""
    kind = {".zip": ZipImages, ".csv": PixelTable}.get(root.suffix.lower())
    return kind(root) if kind and root.is_file() else FolderImages(root)
