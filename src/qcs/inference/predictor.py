"""A trained network on images as users have them: faces found, cut out and classified.

    import qcs
    faces = qcs.load().predict(["photo.jpg"])  # or qcs.load("model.ckpt")

F faces of an image, K classes, C features.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from qcs.checkpoints.onnx import Export
from qcs.config.errors import UserError
from qcs.inference import backends
from qcs.inference.crop import LOOSE, Crop
from qcs.inference.detector import Detector, Face
from qcs.inference.face_extraction import Look, look
from qcs.inference.faces import Faces, Prediction, Result
from qcs.inference.inputs import Input, Item, as_item, read
from qcs.inference.processors import workers_for
from qcs.inference.sources import Source
from qcs.inference.workers import TIMEOUT, looks

if TYPE_CHECKING:
    from qcs.checkpoints.load import Checkpoint

MAX_WAITING = 50_000_000  # pixels of the photos that wait for a full batch: 150 MB
DRAWN_FACES = (
    "this network was trained on drawn faces: its answers for photographs of people mean nothing "
    "until it is trained on photographs"
)


class Predictor:
    """Classifies the faces in images with a checkpoint.

    Args:
        checkpoint: of `qcs.inference.backends.open_network`, or of
            `qcs.checkpoints.load.load_classifier`.
        detector: finds faces; None means the default one, which is made when it is first needed.
        crop: how faces are cut out of a photo; see `qcs.inference.crop.crop_of`.
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
        form: backends.Form = "eager",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        self.network: Any = checkpoint.network
        if isinstance(checkpoint, Export):
            backends.require_form(form, export=True)
            self.backend, self._logits = "onnxruntime", checkpoint.network
            self._embed = checkpoint.embed
        else:
            from qcs.inference.compiled import in_form  # PyTorch only when it is needed

            self.network = in_form(checkpoint.network.to(device), form, batch_size)
            self.backend, self._logits = "torch", backends.in_torch(self.network, device)
            self._embed = backends.embed_in_torch(self.network, device) if form == "eager" else None
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
        self,
        images: Input | Sequence[Input],
        detect: bool = True,
        workers: int | Literal["auto"] = 0,
        embeddings: bool = False,
    ) -> Faces:
        """Find and classify the faces of images.

        Args:
            images: one or several paths, PIL images or uint8 arrays, (H, W, 3) RGB or (H, W) grey.
            detect: whether to find the faces; else every image is taken as a cut face.
            workers: processes that read the images and find the faces, worth it for many images;
                "auto" takes one for each processor.
            embeddings: whether each face has the features from which the network classifies it.

        Returns:
            For each image a list of its faces, the largest first; `to_pandas()` makes a table of
            them, and `embeddings` is an array.

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
        features = self.features if embeddings else None
        found = []
        items, number = map(as_item, images), workers_for(workers, len(images))
        for result in self.stream(items, detect, number, keep=False, embeddings=embeddings):
            if result.error is not None:
                raise UserError(result.error)
            found.append(result.predictions)
        files = [str(x) if isinstance(x, (str, PathLike)) else None for x in images]
        return Faces(found, self.class_names, files, features)

    def stream(
        self,
        items: Iterable[Item | Source],
        detect: bool = True,
        workers: int = 0,
        keep: bool = True,
        timeout: float = TIMEOUT,
        embeddings: bool = False,
    ) -> Iterator[Result]:
        """Find and classify the faces of a stream of images, in order and in batches.

        Args:
            items: the images; a `Source` is read here, or by a worker.
            detect: whether to find the faces; else every image is taken as a cut face.
            workers: processes that read, find and cut, see `qcs.inference.workers`; 0 for none.
            keep: whether results hold the images; those that a worker read are read again for it.
            timeout: seconds for a photo in a worker.
            embeddings: whether faces have the features from which the network classifies them.
        """
        detector = self.detector if detect else None
        if workers:
            settings = detector.settings if detector else None
            found = looks(items, workers, settings, self.crop, timeout)
        else:
            found = (look(item, detector, self.crop) for item in items)
        yield from self.answer(found, keep, embeddings)

    def answer(
        self, found: Iterable[Look], keep: bool = False, embeddings: bool = False
    ) -> Iterator[Result]:
        """Classify what was found in images, with arguments and results as of `stream`."""
        waiting: list[Look] = []
        number = pixels = 0
        for one in found:
            waiting.append(one)
            number += len(one.faces)
            pixels += one.pixels
            if number >= self.batch_size or pixels >= MAX_WAITING:
                yield from self._finish(waiting, keep, embeddings)
                waiting, number, pixels = [], 0, 0
        yield from self._finish(waiting, keep, embeddings)

    def _finish(self, waiting: list[Look], keep: bool, embeddings: bool) -> Iterator[Result]:
        cropped = [crop for one in waiting for crop in one.crops]
        answers: Iterator[Any]
        if embeddings:
            answers = zip(*self.embed(cropped), strict=True)
        else:
            answers = ((row, None) for row in self.classify(cropped))
        for item, _, faces, crops, source in waiting:
            found = [self._prediction(face, *next(answers)) for face in faces]
            if keep and isinstance(source, Source) and not item.error:
                item = read(source)
            yield Result(item.key, item.image if keep else None, item.error, found, crops)

    def classify(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Turn cut faces into probabilities (F, K), in batches.

        Raises:
            UserError: the probabilities are not finite, or a batch does not fit into memory.
        """
        batches = [backends.softmax(logits) for logits in self._answers(self._logits, crops)]
        return np.concatenate([np.zeros((0, len(self.class_names))), *batches])

    def embed(self, crops: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Turn cut faces into probabilities (F, K) and features (F, C) float16, in batches.

        The features are the vector of the base branch from which the classifier computes.

        Raises:
            UserError: as `classify`; or the network is compiled, or an export without features.
        """
        if self._embed is None:
            raise UserError(
                "an .onnx gives embeddings if it was exported with `qcs export features=true`"
                if self.backend == "onnxruntime"
                else "embeddings are given by the base branch with form=eager: leave form out"
            )
        if not crops:
            return self.classify([]), np.zeros((0, self.features), np.float16)
        logits, features = zip(*self._answers(self._embed, crops), strict=True)
        return backends.softmax(np.concatenate(logits)), np.concatenate(features).astype(np.float16)

    @cached_property
    def features(self) -> int:
        """C, the length of an embedding.

        Raises:
            UserError: as `embed`.
        """
        return int(self.embed([Image.new("RGB", (64, 64))])[1].shape[1])

    def _answers(self, run: Callable, crops: Sequence[Image.Image]) -> Iterator[Any]:
        images = (np.asarray(self.transform(crop)) for crop in crops)
        return backends.in_batches(run, images, self.batch_size, self.device)

    def _prediction(
        self, face: Face | None, row: np.ndarray, embedding: np.ndarray | None
    ) -> Prediction:
        by_name = dict(zip(self.class_names, row.tolist(), strict=True))
        answer = (self.class_names[row.argmax()], float(row.max()), by_name)
        if face is None:
            return Prediction(*answer, embedding=embedding)
        landmarks = tuple(map(tuple, face.landmarks.tolist()))
        return Prediction(*answer, tuple(face.box.tolist()), landmarks, face.score, embedding)
