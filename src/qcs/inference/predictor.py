"""A trained network on images as users have them: faces found, cut out and classified.

    import qcs
    faces = qcs.load().predict(["photo.jpg"])  # or qcs.load("model.ckpt")

F faces of an image, K classes.
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from qcs.checkpoints.names import Trust
from qcs.checkpoints.onnx import Export
from qcs.config.errors import UserError
from qcs.evaluation.device import pick_device
from qcs.inference.backends import Form, in_torch, open_network, require_form
from qcs.inference.crops import LOOSE, Crop, as_trained, crop_of, cut
from qcs.inference.detector import Detector, Face
from qcs.inference.inputs import Input, Item, as_image

if TYPE_CHECKING:
    from qcs.checkpoints.load import Checkpoint

log = logging.getLogger(__name__)

MAX_WAITING = 50_000_000  # pixels of the photos that wait for a full batch: 150 MB
DRAWN_FACES = (
    "this network was trained on drawn faces: its answers for photographs of people mean nothing "
    "until it is trained on photographs"
)


class Prediction(NamedTuple):
    """A face and its expression.

    The box, the landmarks and the score are None where the image was taken as a cut face.
    """

    label: str
    probability: float
    probabilities: dict[str, float]  # by class name, summing to 1
    box: tuple[float, ...] | None = None  # left, top, right, bottom in pixels
    landmarks: tuple[tuple[float, float], ...] | None = None  # see qcs.inference.detector
    score: float | None = None  # of the detector


class Result(NamedTuple):
    """The result for an `Item`: its faces, or an error."""

    key: Any
    image: Image.Image | None
    error: str | None
    predictions: list[Prediction]
    crops: list[Image.Image]


class Predictor:
    """Classifies the faces in images with a checkpoint.

    Args:
        checkpoint: of `qcs.inference.backends.open_network`, or of
            `qcs.checkpoints.load.load_classifier`.
        detector: finds faces; None means the default one, which is made when it is first needed.
        crop: how faces are cut out of a photo; see `qcs.inference.crops.crop_of`.
        batch_size: the number of faces that are classified at once.
        device: of the network.
        form: see `qcs.inference.compiled`; a form other than "eager" is worth it for many faces.

    Attributes:
        backend: the library that computes the answers, "onnxruntime" or "torch".
        warning: a sentence on why its answers must not be relied on, or None. `predict` issues it
            once, as a Python warning.

    Raises:
        UserError: `batch_size` is below 1, or as `qcs.inference.compiled.in_form`.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | Export",
        detector: Detector | None = None,
        crop: Crop = LOOSE,
        batch_size: int = 32,
        device: str = "cpu",
        form: Form = "eager",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        self.network: Any = checkpoint.network
        if isinstance(checkpoint, Export):
            require_form(form, export=True)
            self.backend, self._logits = "onnxruntime", checkpoint.network
        else:
            from qcs.inference.compiled import in_form  # PyTorch only when it is needed

            self.network = in_form(checkpoint.network.to(device), form, batch_size)
            self.backend, self._logits = "torch", in_torch(self.network, device)
        self.class_names = checkpoint.class_names
        self.transform: Callable[[Image.Image], Any] = checkpoint.transform
        self.crop = crop
        self._detector, self.batch_size, self.device = detector, batch_size, device
        drawn = checkpoint.recipe["dataset"]["name"] in ("synthetic", "synthetic_folder")
        self.warning = DRAWN_FACES if drawn else None
        self._warned = False

    @property
    def detector(self) -> Detector:
        """The detector, which is made when it is first needed."""
        self._detector = self._detector or Detector()
        return self._detector

    def predict(
        self, images: Input | Sequence[Input], detect: bool = True
    ) -> list[list[Prediction]]:
        """Find and classify the faces of images.

        Args:
            images: one or several paths, PIL images or uint8 arrays, (H, W, 3) RGB or (H, W) grey.
            detect: whether to find the faces; else every image is taken as a cut face.

        Returns:
            For each image a list of its faces, the largest first.

        Raises:
            UserError: an image cannot be read, the detector is not installed, or as for `classify`.

        Examples:
            >>> import qcs
            >>> predictor = qcs.load("model.ckpt")
            >>> faces = predictor.predict("photo.png", detect=False)[0]
            >>> len(faces), faces[0].label in predictor.class_names
            (1, True)
        """
        if self.warning and not self._warned:
            warnings.warn(self.warning, stacklevel=2)
            self._warned = True
        if isinstance(images, (str, PathLike, np.ndarray, Image.Image)):
            images = [images]
        items = (Item(number, as_image(image)) for number, image in enumerate(images))
        return [result.predictions for result in self.stream(items, detect)]

    def stream(self, items: Iterable[Item], detect: bool = True) -> Iterator[Result]:
        """Find and classify the faces of a stream of images, in order and in batches."""
        waiting: list[tuple[Item, list[Face | None], list[Image.Image]]] = []
        number = pixels = 0
        for item in items:
            faces: list[Face | None] = []
            crops: list[Image.Image] = []
            if item.image is not None:
                faces = list(self.detector(item.image)) if detect else [None]
                pixels += item.image.width * item.image.height
                crops = [self._crop(item.image, face) for face in faces]
            waiting.append((item, faces, crops))
            number += len(faces)
            if number >= self.batch_size or pixels >= MAX_WAITING:
                yield from self._finish(waiting)
                waiting, number, pixels = [], 0, 0
        yield from self._finish(waiting)

    def _crop(self, image: Image.Image, face: Face | None) -> Image.Image:
        if face is None:
            return as_trained(image, self.crop)
        return cut(image, face.landmarks, self.crop)

    def _finish(self, waiting: list) -> Iterator[Result]:
        probabilities = self.classify([crop for *_, crops in waiting for crop in crops])
        start = 0
        for item, faces, crops in waiting:
            rows = probabilities[start : start + len(faces)]
            start += len(faces)
            found = [self._prediction(f, row) for f, row in zip(faces, rows, strict=True)]
            yield Result(item.key, item.image, item.error, found, crops)

    def classify(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Turn cut faces into probabilities (F, K), in batches.

        Raises:
            UserError: the probabilities are not finite, or a batch does not fit into memory.
        """
        rows = [np.zeros((0, len(self.class_names)))]
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            try:
                batch = np.stack([np.asarray(self.transform(crop)) for crop in part])
                rows.append(softmax(self._logits(batch)))
            except Exception as error:
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
        by_name = dict(zip(self.class_names, row.tolist(), strict=True))
        answer = (self.class_names[row.argmax()], float(row.max()), by_name)
        if face is None:
            return Prediction(*answer)
        landmarks = tuple(map(tuple, face.landmarks.tolist()))
        return Prediction(*answer, tuple(face.box.tolist()), landmarks, face.score)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (F, K) into probabilities, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU, the libraries have no kind of error for that."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "allocate memory" in str(error)


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
            where there is none. See `open_network` for what is computed with onnxruntime.
        device: the network's.
        crop: how faces are cut, see `crop_of`.
        form: see `Predictor`.
        trust: import paths of the user's own code that may be built, as ["mine.TinyBackbone"].

    Raises:
        UserError: as for `open_network`, `qcs.inference.crops.crop_of`,
            `qcs.evaluation.device.pick_device` and `qcs.inference.compiled.in_form`.

    Examples:
        >>> import qcs
        >>> qcs.load("model.ckpt").class_names
        ('red', 'green', 'blue')
    """
    device = pick_device(device)
    checkpoint = open_network(path, device, form, trust)
    found, _ = crop_of(checkpoint.recipe, crop)
    return Predictor(checkpoint, crop=found, device=device, form=form)
