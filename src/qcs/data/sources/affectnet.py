"""AffectNet, manual annotations: the CSV release, or the newer one with numpy annotations.

The owner's validation set (500 images a class) is the test set here, as in the literature; the
owner's test set is not published.

Source: Mollahosseini et al., "AffectNet", IEEE Transactions on Affective Computing 2019;
mohammadmahoor.com/pages/databases/affectnet.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from qcs.config.errors import UserError
from qcs.data.crop_geometry import Crop
from qcs.data.folders import images_below, require_path
from qcs.data.manifest import Manifest
from qcs.data.sources import fer2013
from qcs.data.tables import (
    Row,
    as_index,
    garbage_collection_paused,
    present,
    read_csv,
    read_text,
    slashes,
)

# Labels 0 to 7; 8 to 10 (none, uncertain, no face) are dropped.
CLASS_NAMES = (
    "Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt",
)  # fmt: skip
LABELS = 11
# Its owners' boxes are about as wide around the face. An estimate, as no copy was at hand.
CROP = Crop(fer2013.CROP.landmarks)
BOX = ("face_x", "face_y", "face_width", "face_height")
COLUMNS = ("subDirectory_filePath", *BOX, "facial_landmarks", "expression", "valence", "arousal")
TABLES = {"training.csv": "train", "validation.csv": "test"}
# Where the sub-folders of images may be.
IMAGES = ("Manually_Annotated_Images/", "Manually_Annotated/Manually_Annotated_Images/")
FOLDERS = {"train_set": "train", "val_set": "test"}
HINT = (
    "a folder with training.csv, validation.csv (or Manually_Annotated_file_lists/ with them) and "
    "Manually_Annotated_Images/, or with train_set/ and val_set/, each holding images/ and "
    "annotations/*_exp.npy"
)


@garbage_collection_paused()
def read(path: str | None = None, classes: Literal[7, 8] = 7, crop: bool = True) -> Manifest:
    """Read AffectNet with 7 (283,901 train, 3,500 test) or 8 classes (287,651 and 4,000).

    Args:
        classes: 8 with contempt, 7 without.
        crop: whether to cut the photographs of the CSV release to its face boxes; false where they
            are cut already. The numpy release holds cut faces.

    Raises:
        UserError: no path given, nothing there, or images or annotations are missing.
        UserError: a line of a table or an annotation is wrong; names it.
    """
    root, names = require_path(path, "AffectNet", HINT), CLASS_NAMES[:classes]
    if (root / "train_set").is_dir():
        found = [row for folder, split in FOLDERS.items() for row in _numpy(root, folder, split)]
        return Manifest.build(root, [row for row in found if row[1] < classes], names)
    lists = root / "Manually_Annotated_file_lists"
    lists = lists if lists.is_dir() else root
    if not (lists / "training.csv").is_file():
        raise UserError(f"no training.csv and no train_set/ in {root}; expected {HINT}")
    rows, boxes = [], []
    for table, split in TABLES.items():
        more, cut = _table(root, lists / table, split, classes)
        rows += more
        boxes.append(cut)
    return Manifest.build(root, rows, names, boxes=np.concatenate(boxes) if crop else None)


def _table(root: Path, table: Path, split: str, classes: int) -> tuple[list[Row], np.ndarray]:
    """Rows and boxes (N, 4) of one CSV; some copies of validation.csv come without a header."""
    text = read_text(table)
    headed = text.split(",", 1)[0].strip() == COLUMNS[0]
    first = 0 if headed else 1
    if not headed:
        text = ",".join(COLUMNS) + "\n" + text
    lines, columns = read_csv(table, (COLUMNS[0], *BOX, "expression"), text)
    names, labels = columns[COLUMNS[0]], columns["expression"]
    corners = list(zip(*(columns[name] for name in BOX), strict=True))
    folder, rows = next((f for f in IMAGES if (root / f).is_dir()), ""), []
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for line, name, label, box in zip(lines, names, labels, corners, strict=True):
        where = f"{table} line {line - first}"
        index = as_index(label, 0, LABELS, where)
        if index >= classes:
            continue
        row = Row(folder + slashes(name), index, split, line - first)
        rows.append(row)
        try:
            x, y, width, height = (round(float(number)) for number in box)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{where} has the face box {','.join(box)}, expected four numbers; correct or "
                "remove the line, or use dataset.crop=false for faces that are cut already"
            ) from error
        boxes.setdefault(row.path, (x, y, x + width, y + height))
    rows = present(root, rows, table)
    cut = [boxes[row.path] for row in rows]
    return rows, np.array(cut, dtype=np.int64).reshape(-1, 4)


def _numpy(root: Path, folder: str, split: str) -> list[tuple[str, int, str]]:
    """Rows of one set: images/N.jpg with annotations/N_exp.npy."""
    images, notes = root / folder / "images", root / folder / "annotations"
    if not (images.is_dir() and notes.is_dir()):
        raise UserError(f"no images/ and annotations/ in {root / folder}; expected {HINT}")
    annotated = {f.name for f in notes.iterdir()}
    files, rows = images_below(images), []
    for image in (file.relative_to(images).as_posix() for file in files):
        note = f"{image.rpartition('.')[0]}_exp.npy"
        if note not in annotated:
            raise UserError(f"{images / image} has no annotation {notes / note}; copy it")
        label = as_index(_expression(notes / note), 0, LABELS, str(notes / note))
        rows.append((f"{folder}/images/{image}", label, split))
    return rows


def _expression(note: Path) -> str:
    """The label of an annotation: a single number, saved as text or as an integer."""
    try:
        return str(np.load(note, allow_pickle=False).reshape(-1)[0]).strip()
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{note} is not a numpy annotation ({error}); copy it again") from error
