"""FER2013: Kaggle's tables of pixels, or the common re-packaging into class folders.

Source: Goodfellow et al., "Challenges in Representation Learning", 2013; the Kaggle competition
of that name (fer2013.csv, icml_face_data.csv).
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from qcs.config.errors import UserError
from qcs.data.crop_geometry import Crop
from qcs.data.folders import readable, require_path, same_name
from qcs.data.manifest import Manifest
from qcs.data.sources.image_folder import find_images
from qcs.data.tables import as_index

# Labels 0 to 6.
CLASS_NAMES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
# Measured on FERPlus, which has the same images, by `inference.crop.measure`: medians over 367 of
# 400 training images, those in which the detector finds the face. As 16 % of them are tilted by
# more than ten degrees, they were not turned upright.
CROP = Crop(
    ((0.313, 0.402), (0.687, 0.402), (0.5, 0.603), (0.35, 0.753), (0.65, 0.753)),
    size=48,
    grey=True,
)
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
TABLES = ("fer2013.csv", "icml_face_data.csv")
HINT = (
    "Kaggle's fer2013.csv or icml_face_data.csv, a folder with one of them, or a folder with "
    "train/angry/Training_*.jpg and test/angry/P*Test_*.jpg"
)


class Face(NamedTuple):
    """A line of Kaggle's table."""

    line: int
    emotion: str
    usage: str


def find_table(path: Path) -> Path | None:
    """Kaggle's table: the path itself, or a file in this folder or in fer2013/ below it."""
    if path.is_file():
        return path
    places = [d / name for d in (path, path / "fer2013") for name in TABLES]
    return next((place for place in places if place.is_file()), None)


def read_table(table: Path) -> list[Face]:
    """Read everything but the pixels.

    Raises:
        UserError: it is not Kaggle's table; names the line.
    """
    with readable(table), table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = _lines(file, table)
        header = [name.strip().lower() for name in next(lines, (1, []))[1]]
        if sorted(header) != ["emotion", "pixels", "usage"]:
            raise UserError(
                f"{table} line 1 is {','.join(header)[:80]!r}, expected emotion,pixels,Usage; "
                "copy Kaggle's fer2013.csv or icml_face_data.csv again"
            )
        emotion, usage = header.index("emotion"), header.index("usage")
        faces = []
        for line, row in lines:
            if not row:
                continue
            if len(row) != 3 or row[usage].strip() not in USAGES:
                raise UserError(
                    f"{table} line {line} is cut short or has no Usage of {', '.join(USAGES)}; "
                    "copy the file again"
                )
            faces.append(Face(line, row[emotion], row[usage].strip()))
    return faces


def _lines(file: TextIO, table: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line; what csv refuses is a UserError."""
    reader = csv.reader(file)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{table} line {reader.line_num}: {error}; copy the file again") from error


def read(path: str | None = None) -> Manifest:
    """Read FER2013: 28,709 train, 3,589 val (PublicTest) and 3,589 test (PrivateTest) images.

    Args:
        path: the table or the folder. In the re-packaging a file's name may begin with the split
            (PublicTest_*); where it does not, the folder's name decides.

    Raises:
        UserError: no path given, nothing there, or no images.
        UserError: a line of the table is wrong, or a folder is not one of the seven classes.
    """
    root = require_path(path, "FER2013", HINT, (".csv",))
    if table := find_table(root):
        rows = []
        for face in read_table(table):
            label = as_index(face.emotion, 0, len(CLASS_NAMES), f"{table} line {face.line}")
            rows.append((f"line {face.line}", label, USAGES[face.usage]))
        return Manifest.build(table, rows, CLASS_NAMES)
    return Manifest.build(root, _folders(root), CLASS_NAMES)


def _folders(root: Path) -> list[tuple[str, int, str]]:
    index = {same_name(name): i for i, name in enumerate(CLASS_NAMES)}
    rows = []
    for image in find_images(root):
        if image.split is None:
            continue
        label = index.get(same_name(image.class_name))
        if label is None:
            raise UserError(
                f"{root / image.path} is in a folder {image.class_name!r}, which is not one of the "
                f"classes {', '.join(index)}; for classes of your own use dataset=image_folder"
            )
        usage = image.path.rpartition("/")[2].split("_")[0]
        rows.append((image.path, label, USAGES.get(usage, image.split)))
    if not rows:
        raise UserError(f"no images in {root}; FER2013 is expected as {HINT}")
    return rows
