"""The faces of images as Python has them: lists of predictions, a table, an array of embeddings.

F faces, C features.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from qcs.config.errors import UserError, missing_extra

if TYPE_CHECKING:
    import pandas

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
SIDES = ("left", "top", "right", "bottom")


class Prediction(NamedTuple):
    """A face and its expression.

    The box, the landmarks and the score are None where the image was taken as a cut face, and the
    person where it was not followed through a film.
    """

    label: str
    probability: float
    probabilities: dict[str, float]  # by class name, summing to 1
    box: tuple[float, ...] | None = None  # left, top, right, bottom in pixels
    landmarks: tuple[tuple[float, float], ...] | None = None  # see qcs.inference.detector
    score: float | None = None  # of the detector
    embedding: np.ndarray | None = None  # (C,) float16, where it was asked for
    person: int | None = None  # from 1, see qcs.inference.tracking


class Result(NamedTuple):
    """The result for an `Item`: its faces, or an error."""

    key: Any
    image: Image.Image | None
    error: str | None
    predictions: list[Prediction]
    crops: list[Image.Image]


class Faces(list[list[Prediction]]):
    """A list with the faces of each image.

    Args:
        faces: for each image a list of its faces.
        class_names: K names.
        files: the path of each image; None for one that was given as an image.
        features: C, where the faces have embeddings.

    Examples:
        >>> import qcs
        >>> predictor = qcs.load("model.ckpt")
        >>> faces = predictor.predict(["photo.png"], detect=False, embeddings=True)
        >>> faces[0][0].label == faces.to_pandas().label[0], faces.embeddings.shape
        (True, (1, 16))
    """

    def __init__(
        self,
        faces: Iterable[list[Prediction]],
        class_names: Sequence[str],
        files: Sequence[str | None],
        features: int | None = None,
    ) -> None:
        super().__init__(faces)
        self.class_names, self.files, self.features = tuple(class_names), files, features

    @property
    def embeddings(self) -> np.ndarray:
        """The features of all faces, (F, C) float16, a row for each row of `to_pandas`.

        Raises:
            UserError: `predict` was called without `embeddings=True`.
        """
        if self.features is None:
            raise UserError("there are no embeddings: write predict(..., embeddings=True)")
        rows = [face.embedding for faces in self for face in faces]
        return np.array(rows, dtype=np.float16).reshape(len(rows), self.features)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each face, with the columns of the CSV that `qcs predict` writes.

        "image" is the position of the image in the list, "file" its path where it was given as one.
        An image without a face has no row.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_extra("archive", "to_pandas() needs") from error
        marks = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
        columns = ["image", "file", "face", *SIDES, "score", *marks, "label", "probability"]
        columns += [f"p_{name}" for name in self.class_names]
        rows = [
            {"image": image, "file": self.files[image], "face": number, **_row(face)}
            for image, faces in enumerate(self)
            for number, face in enumerate(faces)
        ]
        return pandas.DataFrame(rows, columns=columns)


def _row(face: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"label": face.label, "probability": face.probability}
    row |= zip(SIDES, face.box or (), strict=False)
    if face.score is not None:
        row["score"] = face.score
    for name, (x, y) in zip(POINTS, face.landmarks or (), strict=False):
        row |= {f"{name}_x": x, f"{name}_y": y}
    return row | {f"p_{name}": value for name, value in face.probabilities.items()}
