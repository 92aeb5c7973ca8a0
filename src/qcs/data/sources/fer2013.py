"""FER2013: Kaggle's tables of pixels, or the common re-packaging into class folders.

Source: Goodfellow et al., "Challenges in Representation Learning", 2013; the Kaggle competition
of that name (fer2013.csv, icml_face_data.csv).
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qcs.config.errors import UserError
from qcs.data.image_files import same_name
from qcs.data.manifest import Manifest, require
from qcs.data.sources.image_folder import place
from qcs.data.tables import as_index, readable

# Labels 0 to 6.
CLASS_NAMES = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
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
    """Kaggle's table at a path: the file itself, or in this folder or in fer2013/ below it."""
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
        reader = csv.reader(file)
        rows = _whole(reader, table)
        header = [name.strip().lower() for name in next(rows, [])]
        if sorted(header) != ["emotion", "pixels", "usage"]:
            raise UserError(
                f"{table} line 1 is {','.join(header)[:80]!r}, expected emotion,pixels,Usage; "
                "copy Kaggle's fer2013.csv or icml_face_data.csv again"
            )
        emotion, usage = header.index("emotion"), header.index("usage")
        faces = []
        for row in rows:
            if not row:
                continue
            if len(row) != 3 or row[usage].strip() not in USAGES:
                raise UserError(
                    f"{table} line {reader.line_num} is cut short or has no Usage of "
                    f"{', '.join(USAGES)}; copy the file again"
                )
            faces.append(Face(reader.line_num, row[emotion], row[usage].strip()))
    return faces


def _whole(reader, table: Path) -> Iterator[list[str]]:
    """The rows, or one sentence for what csv refuses."""
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(f"{table} line {reader.line_num}: {error}; copy the file again") from error


def read(path: str | None = None) -> Manifest:
    """Read FER2013: 28,709 train, 3,589 val (PublicTest) and 3,589 test (PrivateTest) images.

    Args:
        path: the table or the folder. In the re-packaging a file's name says its part where it
            begins with one (PublicTest_*); its folder does otherwise.

    Raises:
        UserError: no path given, nothing there, or no images.
        UserError: a line of the table is wrong, or a folder is not one of the seven classes.
    """
    root = require(path, "FER2013", HINT, (".csv",))
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
    for image in place(root):
        if image.split is None:
            continue
        label = index.get(same_name(image.name))
        if label is None:
            raise UserError(
                f"{root / image.path} is in a folder {image.name!r}, which is not one of the "
                f"classes {', '.join(index)}; for classes of your own use dataset=image_folder"
            )
        part = image.path.rpartition("/")[2].split("_")[0]
        rows.append((image.path, label, USAGES.get(part, image.split)))
    if not rows:
        raise UserError(f"no images in {root}; FER2013 is expected as {HINT}")
    return rows
