"""Cut faces out of photos in the same way as the training images of a data set were cut."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.crop_geometry import Crop
from qcs.data.folders import images_below
from qcs.data.sources import affectnet, fer2013, ferplus, rafdb
from qcs.inference.detector import Detector
from qcs.inference.inputs import as_image

log = logging.getLogger(__name__)

TILT = 30  # degrees; data sets that are not levelled hold hardly any face that is tilted more
MEASURED = 400  # images of a folder of training faces


CROPS = {
    "ferplus": ferplus.CROP,
    "fer2013": fer2013.CROP,
    "rafdb": rafdb.CROP,
    "affectnet": affectnet.CROP,
}
TITLES = {"ferplus": "FERPlus", "fer2013": "FER2013", "rafdb": "RAF-DB", "affectnet": "AffectNet"}
LOOSE = Crop(ferplus.CROP.landmarks)  # for data sets that are not among them


def fit(landmarks: np.ndarray, crop: Crop) -> tuple[complex, complex]:
    """Fit the five landmarks of a face to those of a crop, by least squares.

    Args:
        landmarks: (5, 2) in the photo.

    Returns:
        a and b of `crop = a * photo + b`, with points as complex numbers x + iy: a is a scale and,
        where the crop is level, a rotation as well; b is a shift.
    """
    photo, target = landmarks @ [1, 1j], np.array(crop.landmarks) @ [1, 1j]
    z, w = photo - photo.mean(), target - target.mean()
    a = (z.conj() * w).sum() / (np.abs(z) ** 2).sum()
    if not crop.level and abs(np.degrees(np.angle(a))) <= TILT:
        a = complex(abs(a))
    return a, target.mean() - a * photo.mean()


def cut(image: Image.Image, landmarks: np.ndarray, crop: Crop) -> Image.Image:
    """Cut a face out of an RGB photo as a data set's crops are.

    Beyond the photo's border its edge is repeated.

    Args:
        landmarks: (5, 2) of the face.

    Returns:
        A square RGB image.
    """
    a, b = fit(landmarks, crop)
    side = crop.size or min(max(round(1 / abs(a)), 16), 512)
    corners = (np.array([0, 1, 1j, 1 + 1j]) - b) / a  # of the crop, in the photo
    low = np.floor([corners.real.min(), corners.imag.min()]).astype(int) - 1
    high = np.ceil([corners.real.max(), corners.imag.max()]).astype(int) + 2
    region = _region(image, low, high)
    # Large regions are reduced first, with antialiasing, since the warp below has none.
    reduced = [max(round(n * side * abs(a)), 1) for n in region.size]
    if reduced[0] < region.width:
        region = region.resize(reduced, Image.Resampling.BILINEAR, reducing_gap=3.0)
    zoom = region.width / (high[0] - low[0])
    step, start = zoom / a / side, zoom * (-b / a - complex(*low))
    matrix = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
    face = region.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return as_trained(face, crop)


def as_trained(face: Image.Image, crop: Crop) -> Image.Image:
    """Return a cut face, in grey where the faces of the data set are grey."""
    return face.convert("L").convert("RGB") if crop.grey else face


def _region(image: Image.Image, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """A rectangle that may reach beyond the photo."""
    size = np.array(image.size)
    inside = (*low.clip(0, size - 1).tolist(), *high.clip(1, size).tolist())
    missing = np.stack([inside[:2] - low, high - inside[2:]], axis=1)  # (x and y, before and after)
    part = image.crop(inside)
    if not missing.any():
        return part
    padding = (missing[1], missing[0], (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), padding, mode="edge"))


def measure(images: Iterable[Image.Image], detector: Detector) -> Crop:
    """Measure how the faces of a data set were cut, by the medians of their landmarks.

    Args:
        images: square crops; a few hundred are best.

    Raises:
        UserError: faces were found in fewer than ten images.
    """
    points, tilts, sides, colours = [], [], [], []
    for image in images:
        # The detector was trained on whole photos, so larger faces with a border help it.
        zoom = max(1.0, 192 / max(image.size))
        big = image.resize([round(n * zoom) for n in image.size], Image.Resampling.BICUBIC)
        border = max(big.size) // 6
        low, high = np.array([-border, -border]), np.array(big.size) + border
        found = detector(_region(big, low, high))
        if found:
            points.append((found[0].landmarks - border) / big.size)
            eyes = (found[0].landmarks[1] - found[0].landmarks[0]) @ [1, 1j]
            tilts.append(abs(np.degrees(np.angle(eyes))))
            sides.append(max(image.size))
            colours.append(np.ptp(np.asarray(image, dtype=int), axis=2).max() > 8)
    if len(points) < 10:
        raise UserError(
            f"crop: a face was found in {len(points)} of the images, at least 10 are needed to "
            "measure how they were cut; name the folder of the training images"
        )
    mirrored = (np.array(points) * [-1, 1] + [1, 0])[:, [1, 0, 2, 4, 3]]  # faces have two sides
    middle = np.median(np.concatenate([points, mirrored]), axis=0)
    size = int(np.median(sides)) if np.ptp(sides) == 0 else None
    level = bool(np.percentile(tilts, 75) < 3)
    return Crop(tuple(map(tuple, middle.round(3).tolist())), level, size, not any(colours))


def crop_of(
    recipe: dict[str, Any], wanted: str | None = None, detector: Detector | None = None
) -> tuple[Crop, str]:
    """Return how the faces of a checkpoint's data set were cut, and a text on that.

    The text goes on from "faces are cropped".

    Args:
        recipe: of the checkpoint, which names the data set.
        wanted: another data set, a key of `CROPS`, or a folder of cut faces that are measured.
        detector: for the measurement; None means the default one.

    Raises:
        UserError: `wanted` is neither, or too few faces are found in the folder.
    """
    name = wanted or str(recipe["dataset"]["name"])
    if name in CROPS:
        return CROPS[name], f"the way the {TITLES[name]} data set crops them"
    if not wanted:
        return LOOSE, (
            f"the way the FERPlus data set crops them, but in colour, since how {name} crops them "
            "is not known (crop=FOLDER of training faces measures it)"
        )
    folder = Path(os.path.expanduser(wanted))
    if not folder.is_dir():
        raise UserError(
            f"crop={wanted} is neither one of {', '.join(CROPS)} nor a folder of training faces"
        )
    files = images_below(folder)
    step = max(len(files) // MEASURED, 1)
    crop = measure(_readable(files[::step]), detector or Detector())
    return crop, f"as the images in {folder} are, by measurement: {crop}"


def _readable(files: Sequence[Path]) -> Iterator[Image.Image]:
    for file in files:
        try:
            yield as_image(file)
        except UserError as error:
            log.warning("left out: %s", terminal(error))
