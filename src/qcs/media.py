"""Photos, videos and webcams in; records and annotated pictures out.

Videos and webcams need the ffmpeg of imageio-ffmpeg, which comes with `pip install 'qcs[faces]'`.
"""

import csv
import glob
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qcs import plots
from qcs.predictor import IMAGES, Item, Prediction, Result, as_image

log = logging.getLogger(__name__)

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
VIDEO_EXTRA = "videos and webcams need `pip install 'qcs[faces]'`"


class Key(NamedTuple):
    """Where an image comes from."""

    file: str  # as given, or "webcam 0"
    name: str  # relative to the folder that was given
    frame: int | None = None  # of a video
    fps: float | None = None


def files_of(source: str | int | Sequence[str]) -> list[tuple[str, str]]:
    """Resolve an input into files, or "webcam N", each with a name to write pictures under.

    Args:
        source: a file, a folder (with all folders below it), a glob, a list of such, or the
            number of a webcam.

    Raises:
        FileNotFoundError: nothing is there, or a folder or glob holds neither images nor videos.
    """
    if isinstance(source, int) or (isinstance(source, str) and source.isdigit()):
        return [(f"webcam {source}", f"webcam-{source}")]
    if not isinstance(source, str):
        return [pair for one in source for pair in files_of(str(one))]
    path = Path(source).expanduser()
    if path.is_file():
        return [(str(path), path.name)]
    if path.is_dir():
        found, top = (f for f in path.rglob("*") if f.is_file()), path
    elif glob.has_magic(source):
        found = (Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        top = Path(*path.parts[: next(i for i, p in enumerate(path.parts) if glob.has_magic(p))])
    else:
        raise FileNotFoundError(f"nothing to read at input={source}")
    known, others = [], 0
    for file in sorted(found):
        if file.suffix.lower() in IMAGES + VIDEOS:
            known.append((str(file), file.relative_to(top).as_posix()))
        else:
            others += 1
    if not known:
        raise FileNotFoundError(f"input={source} holds no image or video, {others} other files")
    if others:
        log.warning("input=%s: left out %d files that are no images or videos", source, others)
    return known


def open_items(
    files: Sequence[tuple[str, str]], every: int = 1, max_frames: int | None = None
) -> Iterator[Item]:
    """Read images and frames one after the other; what cannot be read is an item with an error.

    Args:
        files: of `files_of`.
        every: of a video, each so manieth frame.
        max_frames: of a video; None for all.

    Raises:
        ValueError: `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    for file, name in files:
        if file.startswith("webcam ") or Path(file).suffix.lower() in VIDEOS:
            yield from _frames(file, name, every, max_frames)
            continue
        try:
            yield Item(Key(file, name), as_image(file))
        except ValueError as error:
            yield Item(Key(file, name), error=str(error))


def _frames(file: str, name: str, every: int, max_frames: int | None) -> Iterator[Item]:
    try:
        import imageio
    except ImportError as error:
        raise ImportError(VIDEO_EXTRA) from error
    number, taken = -1, 0
    address = f"<video{file.split()[1]}>" if file.startswith("webcam ") else file
    try:
        with imageio.get_reader(address, format="FFMPEG") as reader:
            fps = reader.get_meta_data().get("fps")
            for number, frame in enumerate(reader):
                if number % every == 0:
                    yield Item(Key(file, name, number, fps), Image.fromarray(frame))
                    taken += 1
                if max_frames is not None and taken >= max_frames:
                    return
    except (OSError, RuntimeError, IndexError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        where = f" after frame {number}" if number >= 0 else ""
        yield Item(Key(file, name), error=f"cannot read {file} as a video{where} ({reason})")
        return
    if number < 0:
        yield Item(Key(file, name), error=f"cannot read {file} as a video (no frames)")


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
        drawn = plots.annotated(result.image, result.predictions)
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
