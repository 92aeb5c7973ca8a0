"""A trained network on images as users have them: faces found, cut out and classified.

    import qcs
    faces = qcs.load().predict(["photo.jpg"])  # or qcs.load("model.ckpt")

F faces of an image, K classes.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from qcs.checkpoints import zoo
from qcs.checkpoints.load import Checkpoint, load_classifier
from qcs.checkpoints.names import Trust
from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.folders import images_below
from qcs.evaluation.apply import pick_device
from qcs.inference.backends import Form, in_form
from qcs.inference.crops import CROPS, LOOSE, Crop, as_trained, cut, measure
from qcs.inference.detector import Detector, Face
from qcs.inference.inputs import Input, Item, as_image

log = logging.getLogger(__name__)

MOST_PIXELS = 50_000_000  # of photos that wait for their batch: 150 MB
MEASURED = 400  # images of a folder of crops
DRAWN = "synthetic"  # the data set of drawn faces
CAUTION = (
    "this network was trained on drawn faces: its answers for photographs of people mean nothing "
    "until it is trained on photographs"
)


class Prediction(NamedTuple):
    """A face and its expression; box, landmarks and score are None for images of cut faces."""

    label: str
    probability: float
    probabilities: dict[str, float]  # by class name, summing to 1
    box: tuple[float, ...] | None = None  # left, top, right, bottom in pixels
    landmarks: tuple[tuple[float, float], ...] | None = None  # see qcs.inference.detector
    score: float | None = None  # of the detector


class Result(NamedTuple):
    """What became of an `Item`."""

    key: Any
    image: Image.Image | None
    error: str | None
    predictions: list[Prediction]
    crops: list[Image.Image]


class Predictor:
    """A checkpoint, a detector and the crops of its data set.

    Args:
        checkpoint: of `qcs.checkpoints.load.load_classifier`.
        detector: finds faces; None makes the default one when it is first needed.
        crop: how faces are cut; see `crop_of`.
        batch_size: faces classified at once.
        device: the network's.
        form: see `qcs.inference.backends`; one that is not "eager" pays for many faces.

    Attributes:
        caution: a sentence on why not to rely on its answers, or None; `predict` warns of it once.

    Raises:
        UserError: `batch_size` is below 1, or as `qcs.inference.backends.in_form`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        detector: Detector | None = None,
        crop: Crop = LOOSE,
        batch_size: int = 32,
        device: str = "cpu",
        form: Form = "eager",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        self.network = in_form(checkpoint.network.to(device), form, batch_size)
        self.class_names = checkpoint.class_names
        self.transform, self.crop = checkpoint.transform, crop
        self._detector, self.batch_size, self.device = detector, batch_size, device
        self.caution = CAUTION if data_source(checkpoint.recipe) == DRAWN else None
        self._warned = False

    @property
    def detector(self) -> Detector:
        """Finds faces; made when it is first needed."""
        self._detector = self._detector or Detector()
        return self._detector

    def predict(
        self, images: Input | Sequence[Input], detect: bool = True
    ) -> list[list[Prediction]]:
        """Find and classify the faces of images.

        Args:
            images: paths, PIL images or uint8 arrays, (H, W, 3) RGB or (H, W) grey; or one.
            detect: find the faces; False takes every image as a cut face.

        Returns:
            For each image its faces, the largest first; none where no face was found.

        Raises:
            UserError: an image that cannot be read, or is not one.
            UserError: the detector is not installed.
            UserError: as `classify`.
        """
        if self.caution and not self._warned:
            warnings.warn(self.caution, stacklevel=2)
            self._warned = True
        if isinstance(images, (str, PathLike, np.ndarray, Image.Image)):
            images = [images]
        items = (Item(number, as_image(image)) for number, image in enumerate(images))
        return [result.predictions for result in self.stream(items, detect)]

    def stream(self, items: Iterable[Item], detect: bool = True) -> Iterator[Result]:
        """Do the same for a stream of any length, in order, in batches over its images."""
        waiting: list[tuple[Item, list[Face | None], list[Image.Image]]] = []
        number = pixels = 0
        for item in items:
            faces: list[Face | None] = []
            if item.image is not None:
                faces = list(self.detector(item.image)) if detect else [None]
            crops = [
                as_trained(item.image, self.crop) if face is None
                else cut(item.image, face.landmarks, self.crop)
                for face in faces
            ]  # fmt: skip
            waiting.append((item, faces, crops))
            number += len(faces)
            pixels += item.image.width * item.image.height if item.image else 0
            if number >= self.batch_size or pixels >= MOST_PIXELS:
                yield from self._finish(waiting)
                waiting, number, pixels = [], 0, 0
        yield from self._finish(waiting)

    def _finish(self, waiting: list) -> Iterator[Result]:
        probabilities = self.classify([crop for *_, crops in waiting for crop in crops])
        start = 0
        for item, faces, crops in waiting:
            rows = probabilities[start : start + len(faces)]
            start += len(faces)
            found = [self._prediction(f, row) for f, row in zip(faces, rows, strict=True)]
            yield Result(item.key, item.image, item.error, found, crops)

    @torch.no_grad()
    def classify(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Turn cut faces into probabilities (F, K), in batches.

        Raises:
            UserError: the network's answers are not finite, or a batch does not fit into memory.
        """
        rows = [np.zeros((0, len(self.class_names)))]
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            try:
                batch = torch.stack([self.transform(crop) for crop in part]).to(self.device)
                rows.append(self.network(batch).double().softmax(1).cpu().numpy())
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                raise UserError(
                    f"{len(part)} faces at once do not fit into the memory of {self.device}: "
                    f"write a smaller batch_size than {self.batch_size}"
                ) from error
            if not np.isfinite(rows[-1]).all():
                raise UserError(
                    "the network's answers are not finite numbers, so its file is damaged or its "
                    "training went astray: use another checkpoint (form=eager, if another was set)"
                )
        return np.concatenate(rows)

    def _prediction(self, face: Face | None, row: np.ndarray) -> Prediction:
        named = dict(zip(self.class_names, row.tolist(), strict=True))
        answer = (self.class_names[row.argmax()], float(row.max()), named)
        if face is None:
            return Prediction(*answer)
        landmarks = tuple(map(tuple, face.landmarks.tolist()))
        return Prediction(*answer, tuple(face.box.tolist()), landmarks, face.score)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; PyTorch's allocator of the CPU has no exception of its own."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def data_source(recipe: dict[str, Any]) -> str:
    """The name of the data set that a network was trained on, such as "ferplus"."""
    dataset = recipe.get("dataset")
    if isinstance(dataset, dict) and "name" in dataset:
        return str(dataset["name"])
    if isinstance(dataset, dict):  # format 1: the path of the function that reads it
        target = str(dataset.get("_target_"))
        return next((name for name in (*CROPS, DRAWN) if name in target.split(".")), target)
    return str(dataset)


def crop_of(
    recipe: dict[str, Any], wanted: str | None = None, detector: Detector | None = None
) -> tuple[Crop, str]:
    """How a checkpoint's faces were cut, and what that was taken from.

    Args:
        recipe: of the checkpoint; its data set decides by default.
        wanted: a data set of `qcs.inference.crops.CROPS`, or a folder of training crops to measure.
        detector: for the measurement.

    Raises:
        UserError: `wanted` is neither.
        UserError: a folder without faces.
    """
    name = wanted or data_source(recipe)
    if name in CROPS:
        return CROPS[name], f"as {name} cuts faces"
    if not wanted:
        return LOOSE, (
            f"as ferplus cuts faces, in colour: how {name} does is not known "
            "(crop=FOLDER of training faces measures it)"
        )
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"crop={wanted} is neither one of {', '.join(CROPS)} nor a folder of training faces"
        )
    files = images_below(folder)
    step = max(len(files) // MEASURED, 1)
    crop = measure(_readable(files[::step]), detector or Detector())
    return crop, f"as measured in {folder}: {crop}"


def _readable(files: Sequence[Path]) -> Iterator[Image.Image]:
    for file in files:
        try:
            yield as_image(file)
        except UserError as error:
            log.warning("left out: %s", terminal(error))


def load(
    path: str | PathLike | None = None,
    device: str = "cpu",
    crop: str | None = None,
    form: Form = "eager",
    trust: Trust = None,
) -> Predictor:
    """Make a predictor of a trained network that comes with the package, or of a file.

    Args:
        path: a checkpoint or an exported .onnx; or a name of `qcs zoo`, whose default is taken
            where there is none.
        device: the network's.
        crop: how faces are cut, see `crop_of`.
        form: see `Predictor`.
        trust: names of the user's own code that the file may name, as ["mine.TinyBackbone"].

    Raises:
        UserError: as `qcs.checkpoints.load.load_classifier`, `crop_of`,
            `qcs.evaluation.apply.pick_device` and `qcs.inference.backends.in_form`.
    """
    device = pick_device(device)
    checkpoint = load_classifier(zoo.default_file() if path is None else path, trust)
    found, _ = crop_of(checkpoint.recipe, crop)
    return Predictor(checkpoint, crop=found, device=device, form=form)
