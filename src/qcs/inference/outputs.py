"""Write predictions as JSON lines or as a table."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError
from qcs.inference.inputs import reason
from qcs.inference.pictures import Written
from qcs.inference.predictor import Prediction, Result

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins with one, spreadsheets compute


class Records:
    """Writes a line for each face, and for each image without a face or that cannot be read.

    In file names, bytes that are not UTF-8 are written as `\\xNN`.

    Args:
        path: .csv for a table, anything else for JSON lines; an existing file is overwritten.
        class_names: K names.

    Raises:
        UserError: it cannot be written; the methods raise the same.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path, self.table = path, None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise self._unwritable(error) from error
        if path.suffix.lower() == ".csv":
            marks = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
            box = ["left", "top", "right", "bottom", "score"]
            head = ["file", "frame", "seconds", "face", *box, *marks, "label", "probability"]
            head += [f"p_{name}" for name in class_names]
            last = ["annotated", "crop", "note", "error", "person"]
            self.table = csv.DictWriter(self.file, [*head, *last])
            self.table.writeheader()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"out={self.path} cannot be written ({reason(error)}): choose another place with out="
        )

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.file.close()
        except OSError as problem:
            if error[0] is None:
                raise self._unwritable(problem) from problem

    def write(self, result: Result, pictures: Written) -> None:
        """Write the lines of one image."""
        key = result.key
        place: dict[str, Any] = {"file": _utf8(key.file)}
        if key.frame is not None:
            seconds = None if key.seconds is None else round(key.seconds, 6)
            place |= {"frame": key.frame, "seconds": seconds}
        rows = [{"face": n, **_record(p)} for n, p in enumerate(result.predictions)]
        for row, crop in zip(rows, pictures.crops, strict=False):
            row["crop"] = _utf8(crop)
        if not rows and not result.error:
            rows = [{"note": "no face found"}]
        rest = {"annotated": _utf8(pictures.annotated)} if pictures.annotated else {}
        rest |= {"error": _utf8(result.error)} if result.error else {}
        try:
            for row in rows or [{}]:
                self._line(place | row | rest)
            self.file.flush()  # a webcam's records can be followed
        except OSError as error:
            raise self._unwritable(error) from error

    def _line(self, row: dict[str, Any]) -> None:
        if self.table is None:
            self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            self.table.writerow({k: _cell(v) for k, v in _flat(row).items()})


def _utf8(text: str) -> str:
    """A text in which bytes that are not UTF-8 are written as `\\xNN`; file names can hold some."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, as an apostrophe precedes such texts."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _record(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if prediction.box and prediction.landmarks and prediction.score is not None:
        row["box"] = [round(x, 1) for x in prediction.box]
        row["landmarks"] = {
            name: [round(x, 1), round(y, 1)]
            for name, (x, y) in zip(POINTS, prediction.landmarks, strict=True)
        }
        row["score"] = round(prediction.score, 4)
    row |= {"label": prediction.label, "probability": round(prediction.probability, 6)}
    row["probabilities"] = {k: round(v, 6) for k, v in prediction.probabilities.items()}
    if prediction.person is not None:
        row["person"] = prediction.person
    return row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, (list, dict))}
    flat |= dict(zip(("left", "top", "right", "bottom"), row.get("box", ()), strict=False))
    for name, (x, y) in row.get("landmarks", {}).items():
        flat |= {f"{name}_x": x, f"{name}_y": y}
    return flat | {f"p_{k}": v for k, v in row.get("probabilities", {}).items()}
