"""Read a photo, find its faces and cut them out."""

from typing import Any, NamedTuple

from PIL import Image

from qcs.inference.crop import Crop, as_trained, cut
from qcs.inference.detector import Detector, Face
from qcs.inference.inputs import Item, read
from qcs.inference.sources import Source


class Look(NamedTuple):
    """What was found in an image."""

    item: Item  # an image of a worker's own is left out of it
    pixels: int  # of the image
    faces: list[Face | None]  # None is the whole image, taken as a cut face
    crops: list[Image.Image]  # as many
    source: Source | Item | None = None  # from which the image can be read again


def look(source: Source | Item, detector: Detector | None, crop: Crop, opened: Any = None) -> Look:
    """Read an image if it is not read yet, find its faces, and cut them out.

    Args:
        detector: None takes the image as a cut face.
        opened: see `qcs.data.images.decode`.
    """
    item = read(source, opened) if isinstance(source, Source) else source
    if (image := item.image) is None:
        return Look(item, 0, [], [])
    faces: list[Face | None] = list(detector(image)) if detector else [None]
    crops = [cut(image, f.landmarks, crop) if f else as_trained(image, crop) for f in faces]
    return Look(item, image.width * image.height, faces, crops)
