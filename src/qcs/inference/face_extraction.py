"""Read a photo, find its faces and cut them out: here, or as the work of a worker process."""

import os
import threading
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from PIL import Image

from qcs.inference.crops import Crop, as_trained, cut
from qcs.inference.detector import Detector, Face
from qcs.inference.inputs import Item, read
from qcs.inference.sources import Source

LARGE = 16_000_000  # pixels; of the photos that have more, one is decoded at a time
READY, ASKS = "ready", "asks to decode a large photo"  # what a worker says beside its answers


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


def work(descriptor: int) -> None:
    """Answer photos until the caller is gone.

    Args:
        descriptor: of the socket to the caller.
    """
    connection = Connection(descriptor)
    settings, crop = connection.recv()
    photos: SimpleQueue = SimpleQueue()
    permits: SimpleQueue = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, photos, permits), daemon=True).start()
    detector = None if settings is None else Detector(**settings, threads=1)

    def opened(image: Image.Image) -> None:
        if image.width * image.height > LARGE:
            connection.send(ASKS)
            permits.get()

    try:
        connection.send(READY)
        while True:
            connection.send(_answer(photos.get(), detector, crop, opened))
    except OSError:  # the caller is gone
        os._exit(0)


def _listen(connection: Connection, photos: SimpleQueue, permits: SimpleQueue) -> None:
    """Take what the caller sends, so that it never waits; end with the caller."""
    try:
        while True:
            message = connection.recv()
            (permits if message is None else photos).put(message)
    except (EOFError, OSError):
        os._exit(0)


def _answer(source: Source | Item, detector: Any, crop: Crop, opened: Any) -> Look | str:
    """What is sent back of a photo, without the photo; of a bug, its traceback."""
    try:
        found = look(source, detector, crop, opened)
        return found._replace(item=found.item._replace(image=None))
    except Exception:
        return traceback.format_exc()
