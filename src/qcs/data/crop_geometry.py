"""How the faces of a data set are cut out of photographs; each source says it of its own."""

from typing import NamedTuple


class Crop(NamedTuple):
    """A square around a face, described by where the face's landmarks lie in it."""

    landmarks: tuple[tuple[float, float], ...]  # eyes, nose and corners of the mouth; sides are 1
    level: bool = False  # whether a tilted head is turned upright, or stays as in the photograph
    size: int | None = None  # pixels of a side; None for what the photograph gives
    grey: bool = False
