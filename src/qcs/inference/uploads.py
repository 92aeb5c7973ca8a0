"""Files that a browser has uploaded: a path is opened only inside the page's own folder."""

from pathlib import Path
from typing import Any

from PIL import Image

from qcs.config.errors import UserError
from qcs.data.images import FORMATS, open_file
from qcs.inference.inputs import as_image

MEGAPIXELS = 64  # of an upload; the photos of phones have 12 to 50


def uploaded_file(path: Any, folder: Path) -> Path:
    """Return the path of an upload, after checking what a browser sent as a path.

    Raises:
        UserError: it is not a regular file inside the folder, or a link leads out of it. The
            message is the same for all reasons, so that it does not reveal which files exist.
    """
    try:
        place = Path(path).resolve(strict=True)
        if place.is_file() and place.is_relative_to(folder.resolve()):
            return place
    except (OSError, ValueError, TypeError, RuntimeError):
        pass
    raise UserError("that is no file which was uploaded here")


def open_upload(path: Any, folder: Path) -> Image.Image:
    """Read an upload as an upright RGB image; its size is checked before it is decoded.

    Raises:
        UserError: as for `uploaded_file`, or it is not an image, or has too many pixels.
    """
    place = uploaded_file(path, folder)
    try:
        with open_file(place) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise UserError(f"cannot read {place.name} as an image (not an image)") from error
    if width * height > MEGAPIXELS * 1_000_000:
        raise UserError(
            f"{place.name} has {width} x {height} pixels: more than {MEGAPIXELS} million are not "
            "taken here, make it smaller"
        )
    try:
        return as_image(place)
    except UserError as error:
        raise UserError(str(error).replace(str(place), place.name)) from error
