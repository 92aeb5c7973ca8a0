"""Where a film cuts from one shot to the next; the persons after a cut are new ones."""

import numpy as np
from PIL import Image

from qcs.inference.faces import Prediction, Result

# A cut is what FFmpeg's `scene` score calls one: the mean change of grey, and what it is more than
# the change before, beyond so many of 255 levels. Faces do not count: they may come and go.
CUT = 25.0
SMALL = (64, 36)  # pixels of the picture in which cuts are sought
LEAST_OUTSIDE = 0.2  # of the picture, outside of faces; else all of it counts


class Shot:
    """Notices the cuts of a film."""

    def __init__(self) -> None:
        self.before: np.ndarray | None = None  # the last frame, reduced, in grey
        self.faces: list[Prediction] = []  # of the last frame
        self.change = 0.0

    def ends(self, result: Result) -> bool:
        """Whether a frame is the first one after a cut; False for a frame without its picture."""
        if result.image is None:
            return False
        small = result.image.resize(SMALL, Image.Resampling.BOX).convert("L")
        now, before = np.asarray(small, dtype=np.float32), self.before
        outside = np.ones(now.shape, dtype=bool)
        for face in (*self.faces, *result.predictions):
            if face.box:
                outside[_around(face.box, result.image.size)] = False
        self.before, self.faces = now, result.predictions
        if before is None:
            return False
        if outside.mean() < LEAST_OUTSIDE:
            outside[:] = True
        last, self.change = self.change, float(np.abs(now - before)[outside].mean())
        return min(self.change, self.change - last) > CUT


def _around(box: tuple[float, ...], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a reduced picture that a head with its shoulders covers."""
    left, top, right, bottom = (x / size[n % 2] * SMALL[n % 2] for n, x in enumerate(box))
    wide, high = (right - left) / 2, (bottom - top) / 2
    rows = slice(max(int(top - high), 0), max(int(bottom + high) + 1, 0))
    return rows, slice(max(int(left - wide), 0), max(int(right + wide) + 1, 0))
