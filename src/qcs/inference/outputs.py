"""Records and annotated pictures out."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qcs.inference.inputs import Key
from qcs.inference.predictor import Prediction, Result

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


class Records:
    """Writes a line for each face, and one for each image without a face or that was not read.

    Args:
        path: .csv for a table, anything else for JSON lines.
        class_names: K names.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="", encoding="utf-8")
        self.table = None
        if path.suffix.lower() == ".csv":
            marks = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
            box = ["left", "top", "right", "bottom", "score"]
            head = ["file", "frame", "seconds", "face", *box, *marks, "label", "probability"]
            head += [f"p_{name}" for name in class_names]
            self.table = csv.DictWriter(self.file, [*head, "note", "error"])
            self.table.writeheader()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, result: Result) -> None:
        """Write what is known of one image."""
        key = result.key
        place: dict[str, Any] = {"file": key.file}
        if key.frame is not None:
            seconds = round(key.frame / key.fps, 3) if key.fps else None
            place |= {"frame": key.frame, "seconds": seconds}
        rows = [{"face": n, **_record(p)} for n, p in enumerate(result.predictions)]
        none = {"error": result.error} if result.error else {"note": "no face found"}
        for row in rows or [none]:
            if self.table is None:
                self.file.write(json.dumps(place | row, ensure_ascii=False) + "\n")
            else:
                self.table.writerow(_flat(place | row))
        self.file.flush()  # a webcam's records can be followed


def _record(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if prediction.box is not None:
        row["box"] = [round(x, 1) for x in prediction.box]
        row["landmarks"] = {
            name: [round(x, 1), round(y, 1)]
            for name, (x, y) in zip(POINTS, prediction.landmarks, strict=True)
        }
        row["score"] = round(prediction.score, 4)
    row |= {"label": prediction.label, "probability": round(prediction.probability, 6)}
    row["probabilities"] = {k: round(v, 6) for k, v in prediction.probabilities.items()}
    return row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, (list, dict))}
    flat |= dict(zip(("left", "top", "right", "bottom"), row.get("box", ()), strict=False))
    for name, (x, y) in row.get("landmarks", {}).items():
        flat |= {f"{name}_x": x, f"{name}_y": y}
    return flat | {f"p_{k}": v for k, v in row.get("probabilities", {}).items()}


class Pictures:
    """Writes annotated images and videos, and cut faces.

    Args:
        folder: gets `annotated/` and `crops/`.
        annotate, crops: which of them.
    """

    def __init__(self, folder: Path, annotate: bool, crops: bool) -> None:
        self.folder, self.annotate, self.crops = folder, annotate, crops
        self.video: tuple[str, Any] | None = None

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.video is not None:
            self.video[1].close()
            self.video = None

    def write(self, result: Result) -> None:
        """Write what is wanted of one image."""
        key = result.key
        if self.crops:
            frame = "" if key.frame is None else f"-{key.frame:06d}"
            for number, crop in enumerate(result.crops):
                path = self.folder / "crops" / f"{key.name}{frame}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                crop.save(path)
        if not self.annotate or result.image is None:
            return
        drawn = annotated(result.image, result.predictions)
        path = self.folder / "annotated" / key.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if key.frame is None:
            drawn.save(f"{path}.jpg" if path.suffix.lower() not in (".jpg", ".png") else path)
        else:
            self._frame(str(path.with_suffix(".mp4")), key, drawn)

    def _frame(self, path: str, key: Key, drawn: Image.Image) -> None:
        import imageio

        if self.video is None or self.video[0] != path:
            self._close()
            fps = key.fps or 25
            writer = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2)
            self.video = (path, writer)
        self.video[1].append_data(np.asarray(drawn))


def annotated(image: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """Draw boxes and labels into a copy of an RGB image."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for prediction in predictions:
        left, top, right, bottom = prediction.box or (0, 0, *image.size)
        height = max(11, round((bottom - top) / 9))
        font = ImageFont.load_default(height)
        draw.rectangle((left, top, right, bottom), outline="#ffcc00", width=max(height // 8, 2))
        text = f"{prediction.label} {100 * prediction.probability:.0f} %"
        width = draw.textlength(text, font=font)
        x = min(max(left, 0), max(image.width - width - 4, 0))
        y = top - height - 6 if top >= height + 6 else min(bottom, image.height - height - 6)
        draw.rectangle((x, y, x + width + 4, y + height + 6), fill="#ffcc00")
        draw.text((x + 2, y + 1), text, fill="black", font=font)
    return image
