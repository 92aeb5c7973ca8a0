"""What an image file is, and how it becomes upright RGB.

An image file is one whose name ends with one of `IMAGE_SUFFIXES`, in capitals or not. Whatever its
name says, only a decoder of `FORMATS` opens it.
"""

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from qcs.config.errors import UserError

try:  # an optional package, which lets Pillow read HEIC photographs
    import pillow_heif
except ImportError:
    HAS_HEIF = False
else:
    HAS_HEIF = True
    pillow_heif.register_heif_opener()

HAS_AVIF = bool(features.check("avif")) if "avif" in features.modules else False
# The decoders that Pillow may use. Each is for photographs, and none of them starts a program, as
# the one for EPS does (Ghostscript).
FORMATS = (
    ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
    + ("AVIF",) * HAS_AVIF
    + ("HEIF",) * HAS_HEIF
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
IMAGE_SUFFIXES = (
    (".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm")
    + (".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
    + (".avif",) * HAS_AVIF
    + HEIF_SUFFIXES * HAS_HEIF
)
# The most pixels that an image may have: more than the 108 megapixels of phones, and 360 MB as RGB.
# The number is read from the file's header, before anything is decoded. Pillow's own warning at 89
# megapixels would only add to that, so it is switched off.
MAX_PIXELS = 120_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_image(name: str | PurePath) -> bool:
    """Whether a file's name is that of an image that this Pillow can read."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; a pipe, a socket or a device is refused without waiting.

    Raises:
        OSError: the file is missing or may not be read.
        UserError: it is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        number = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # of a socket, which opens in no other way
            raise UserError("it is not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError("it is not a regular file")
    return os.fdopen(number, "rb")


def decode(file: BinaryIO, opened: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decode an open file into upright RGB; of an animation, its first frame.

    Args:
        file: whose content counts, not its name.
        opened: called with the image when its size is known, before its pixels are decoded.

    Raises:
        UserError: the file is not a whole image of `FORMATS`, or `upright_rgb` refuses it.
    """
    if not file.read(1):
        raise UserError("it is empty")
    file.seek(0)
    with _pillow_errors(), Image.open(file, formats=FORMATS) as image:
        if opened:
            opened(image)
        return upright_rgb(image, in_place=True)


def read_image(
    path: str | Path, opened: Callable[[Image.Image], None] | None = None
) -> Image.Image:
    """Read a regular file into upright RGB, see `decode`.

    Raises:
        OSError: the file is missing or may not be read.
        UserError: it cannot be decoded.
    """
    with open_file(path) as file:
        return decode(file, opened)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn an error of Pillow's into a UserError; a damaged file may raise any kind of them."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # before its size can be asked for
        raise UserError(f"it has more than {MAX_PIXELS // 1_000_000} million pixels") from error
    except UnidentifiedImageError as error:
        raise UserError(f"it is not an image of the formats {', '.join(FORMATS)}") from error
    except Exception as error:
        raise UserError(str(error).strip() or type(error).__name__) from error


def upright_rgb(image: Image.Image, in_place: bool = False) -> Image.Image:
    """Turn an open image into upright RGB, as every command and the Python API see it.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, and what is transparent is
    laid on white.

    Args:
        in_place: whether it may be changed, which saves copies of large images.

    Raises:
        UserError: the image has no pixels or more than `MAX_PIXELS`, its numbers have no known
            range, its kind of pixels cannot be converted, or the rest of its file is damaged.
    """
    if image.format == "EPS":  # an open one is decoded by Ghostscript, which runs its program
        raise UserError("EPS is a program, which is not run here; save it as PNG")
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise UserError(
            f"it has {width}x{height} pixels, expected 1 to {MAX_PIXELS // 1_000_000} million; "
            "make it smaller"
        )
    with _pillow_errors():
        image.load()  # its file may be closed soon
        if not in_place:
            image = image.copy()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError("32-bit float pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow before version 11 reads as 32-bit
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise UserError("integer pixels outside 0 to 65535; save it with 8 or 16 bits")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
