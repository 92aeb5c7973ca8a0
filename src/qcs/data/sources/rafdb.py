"""RAF-DB, basic part: the official release, or the common re-packaging by class folders.

Source: Li et al., "Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression
Recognition in the Wild", CVPR 2017; whdeng.cn/RAF/model1.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from qcs.config.errors import UserError
from qcs.data.crop_geometry import Crop
from qcs.data.folders import require_path
from qcs.data.manifest import Manifest
from qcs.data.tables import Row, as_index, present, read_csv, read_pairs, read_text

# Labels 1 to 7.
CLASS_NAMES = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
# The aligned faces fill their crop and are upright. An estimate, as no copy was at hand;
# `crop=.../Image/aligned` measures yours.
CROP = Crop(
    ((0.29, 0.37), (0.71, 0.37), (0.5, 0.58), (0.335, 0.79), (0.665, 0.79)), level=True, size=100
)
LIST = "EmoLabel/list_patition_label.txt"  # spelt as its owner spells it
HINT = (
    f"the official folder with {LIST} and Image/aligned/*_aligned.jpg, or a re-packaging with "
    "train/<1..7>/, test/<1..7>/, train_labels.csv and test_labels.csv"
)


def read(path: str | None = None, images: Literal["aligned", "original"] = "aligned") -> Manifest:
    """Read RAF-DB: 12,271 train and 3,068 test images.

    Args:
        path: the folder, or the one above it.
        images: of the official release: the aligned faces, or the original photographs cut to
            the official boxes (Annotation/boundingbox).

    Raises:
        UserError: no path given, nothing there, or images or boxes are missing.
        UserError: a line of a table is wrong; names it.
    """
    top = require_path(path, "RAF-DB", HINT)
    for root in (top, top / "basic", top / "DATASET"):
        if (root / LIST).is_file():
            return _official(root, images)
        if (root / "train").is_dir() and (root / "test").is_dir():
            if images != "aligned":
                raise UserError(
                    f"dataset.images={images} needs the official release; {root} holds aligned "
                    "faces only: leave dataset.images=aligned"
                )
            return _repackaged(root)
    raise UserError(f"no {LIST} and no train/ in {top}; RAF-DB is expected as {HINT}")


def _official(root: Path, images: str) -> Manifest:
    table, rows = root / LIST, []
    for line, name, label in zip(*read_pairs(table), strict=True):
        where = f"{table} line {line}"
        split = name.split("_")[0]
        if split not in ("train", "test"):
            raise UserError(f"{where} names {name!r}, expected train_* or test_*; correct it")
        index = as_index(label, 1, len(CLASS_NAMES), where)
        file = name if images == "original" else f"{name.removesuffix('.jpg')}_aligned.jpg"
        rows.append(Row(f"Image/{images}/{file}", index, split, line))
    rows = present(root, rows, table)
    boxes = _boxes(root, rows) if images == "original" else None
    return Manifest.build(root, rows, CLASS_NAMES, boxes=boxes)


def _boxes(root: Path, rows: Sequence[Row]) -> np.ndarray:
    """The official boxes (N, 4): four numbers a file, left, top, right, bottom."""
    boxes = []
    for row in rows:
        file = root / "Annotation/boundingbox" / f"{Path(row.path).stem}_boundingbox.txt"
        text = read_text(file)
        try:
            left, top, right, bottom = (round(float(number)) for number in text.split())
        except (ValueError, OverflowError) as error:
            raise UserError(f"{file} line 1 does not hold four numbers; copy it again") from error
        boxes.append((left, top, right, bottom))
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def _repackaged(root: Path) -> Manifest:
    rows: list[Row] = []
    for split in ("train", "test"):
        table = root / f"{split}_labels.csv"
        lines, columns = read_csv(table, ("image", "label"))
        listed = []
        for line, name, label in zip(lines, columns["image"], columns["label"], strict=True):
            index = as_index(label, 1, len(CLASS_NAMES), f"{table} line {line}")
            listed.append(Row(f"{split}/{index + 1}/{name}", index, split, line))
        rows += present(root, listed, table)
    return Manifest.build(root, rows, CLASS_NAMES)
