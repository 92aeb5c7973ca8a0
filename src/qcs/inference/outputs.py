"""Write predictions as JSON lines or as a table, and tell of them on the console."""

import csv
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError, reason
from qcs.config.escape import spreadsheet, terminal, utf8
from qcs.inference.archive import SUFFIX
from qcs.inference.faces import POINTS, SIDES, Prediction, Result
from qcs.inference.pictures import Written
from qcs.inference.shards import Shard
from qcs.inference.sources import Source

log = logging.getLogger(__name__)

STDOUT = Path("/dev/stdout")
LINES = ("", ".csv", ".jsonl", ".ndjson", ".json", ".txt")  # ends of names of files for lines
FEW = 10  # photos at most of which the console names each face


def output_path(out: str | None, run_dir: Path, read: Iterable[str], shard: Shard | None) -> Path:
    """Return the file or folder for the predictions, relative to the working directory.

    Args:
        out: as the user names it; None is a file in `run_dir`, "-" the standard output.
        read: the files that are to be read.
        shard: becomes a part of a file's name.

    Raises:
        UserError: it is one of the files to be read, or has the name of a format that is not
            written.
    """
    if out in ("-", str(STDOUT)):
        return STDOUT
    text = out or str(run_dir / "predictions.jsonl")
    path = Path(os.path.expanduser(text))
    if path.suffix.lower() == SUFFIX:
        shard = None  # it has parts, which are named after their shard
    elif text.endswith("/"):
        raise UserError(f"out={text} is a folder: write out={text.rstrip('/')}.parquet for one")
    elif path.suffix.lower() not in LINES and (path.is_file() or not path.exists()):
        raise UserError(
            f"out={text}: no {path.suffix} is written; name a .csv, .jsonl or .parquet, and for "
            "pictures add annotate=true"
        )
    if shard:
        path = path.with_name(f"{path.stem}-{shard.name}{path.suffix}")
    if path.exists():
        for file in read:
            if os.path.exists(file) and os.path.samefile(file, path):
                raise UserError(f"out={path} would overwrite {file}, which is to be read")
        if path.is_file():
            log.warning("%s is overwritten", terminal(path))
    return path


class Tally:
    """Counts results, and tells of them on the console.

    Args:
        photos: their number, infinite where there are films or tars; few are told one by one.
        folder: of the run, in which the pictures are.

    Attributes:
        counts: the numbers of "images", "faces", "empty" (images without a face) and "errors",
            and of each label under ("label", name).
    """

    def __init__(self, class_names: Sequence[str], photos: float, folder: Path) -> None:
        self.class_names, self.folder = class_names, folder
        self.few, self.frames = photos <= FEW, math.isinf(photos)
        self.counts: Counter = Counter()

    def add(self, result: Result, pictures: Written) -> None:
        """Take the next result, and the pictures that were written of it."""
        if self.few:
            for line in console_lines(result, pictures, self.folder):
                log.info("%s", terminal(line))
        self.counts["images"] += 1
        self.counts["faces"] += len(result.predictions)
        self.counts["empty"] += not result.predictions and result.error is None
        self.counts.update(("label", p.label) for p in result.predictions)
        if result.error is not None:
            self.counts["errors"] += 1
            log.warning("%s", terminal(result.error))

    def finish(self, out: Path, skipped: int, failed: int, drawn: Sequence[Path]) -> None:
        """Sum up the results.

        Args:
            out: where they were written.
            skipped: the number of images and films that were there already.
            failed: the number of those with an error, which is one of this run as well.
            drawn: folders of pictures.
        """
        if skipped:
            log.info(
                "images or films that were there already: %d, %d of them with an error",
                skipped,
                failed,
            )
        told = summary(self.counts, self.class_names, self.frames)
        log.info("%s: %s", terminal(told), terminal(out))
        self.counts["errors"] += failed
        if drawn and not self.few:
            log.info("pictures: %s", ", ".join(map(terminal, drawn)))


def console_lines(result: Result, pictures: Written, folder: Path) -> Iterator[str]:
    """Yield what the console says of a photo: its faces, and the pictures that were written.

    Args:
        result: of the photo; its error is not told.
        folder: of the run, in which they are.
    """
    file = result.key.file
    if not result.predictions and result.error is None:
        yield f"{file}: no face found"
    for face in result.predictions:
        sides = zip(SIDES, face.box or (), strict=False)  # a cut face has no box
        box = "".join(f", {side} {x:.0f}" for side, x in sides)
        yield f"{file}: {face.label} {100 * face.probability:.0f} %{box}"
    for picture in filter(None, (pictures.annotated, *pictures.crops)):
        yield f"{file}: picture {folder / picture}"


def summary(counts: Counter, class_names: Sequence[str], frames: bool) -> str:
    """Return how many images, faces and labels there were, and what else befell the images.

    Args:
        counts: of a `Tally`.
        frames: whether there may be frames of films among the images.
    """
    images, faces = counts["images"], counts["faces"]
    kind = ("image or frame", "images or frames") if frames else ("image", "images")
    labels = [f"{name} {n}" for name in class_names if (n := counts["label", name])]
    parts = [f"{images} {kind[images != 1]}", f"{faces} face{'s' * (faces != 1)}"]
    parts[1] += f" ({', '.join(labels)})" if labels else ""
    rest = {"empty": "without a face", "errors": "with an error"}
    return ", ".join(parts + [f"{counts[key]} {text}" for key, text in rest.items() if counts[key]])


class Records:
    """Writes a line for each face, and for each image without a face or that cannot be read.

    In file names, bytes that are not UTF-8 are written as `\\xNN`, and in a table all texts
    as by `qcs.config.escape.spreadsheet`.

    Args:
        path: .csv for a table, anything else for JSON lines; an existing file is overwritten.

    Raises:
        UserError: it cannot be written, on entering and by the methods.
    """

    skipped = failed = 0  # images; a file begins anew at each run

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path, self.class_names = path, class_names
        self.table: csv.DictWriter | None = None

    def __enter__(self) -> "Records":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            mode = "a" if self.path == STDOUT else "w"  # a shell may have it append to a file
            self.file = self.path.open(
                mode, newline="", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise self._unwritable(error) from error
        if self.path.suffix.lower() == ".csv":
            marks = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
            head = ["file", "frame", "seconds", "face", *SIDES, "score", *marks]
            head += ["label", "probability", *(f"p_{name}" for name in self.class_names)]
            head += ["annotated", "crop", "note", "error", "member", "person"]
            self.table = csv.DictWriter(self.file, head)
            self.table.writerow({name: spreadsheet(name) for name in head})
        return self

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"out={self.path} cannot be written ({reason(error)}): choose another place with out="
        )

    def __exit__(self, *error: Any) -> None:
        try:
            self.file.close()
        except OSError as problem:
            if error[0] is None:
                raise self._unwritable(problem) from problem

    def done(self, source: Source) -> bool:
        """Whether an image is there already: never."""
        return False

    def write(self, result: Result, pictures: Written) -> None:
        """Write the lines of one image."""
        key = result.key
        place: dict[str, Any] = {"file": utf8(key.file)}
        if key.member is not None:
            place["member"] = utf8(key.member)
        if key.frame is not None:
            seconds = None if key.seconds is None else round(key.seconds, 6)
            place |= {"frame": key.frame, "seconds": seconds}
        rows = [{"face": n, **_record(p)} for n, p in enumerate(result.predictions)]
        for row, crop in zip(rows, pictures.crops, strict=False):
            row["crop"] = utf8(crop)
        if not rows and not result.error:
            rows = [{"note": "no face found"}]
        rest = {"annotated": utf8(pictures.annotated)} if pictures.annotated else {}
        rest |= {"error": utf8(result.error)} if result.error else {}
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
            flat = _flat(row).items()
            self.table.writerow({k: spreadsheet(v) if type(v) is str else v for k, v in flat})


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
    if prediction.embedding is not None:  # float16, each number as short as tells it apart
        row["embedding"] = [float(str(x)) for x in prediction.embedding]
    if prediction.person is not None:
        row["person"] = prediction.person
    return row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if not isinstance(v, (list, dict))}
    flat |= dict(zip(SIDES, row.get("box", ()), strict=False))
    for name, (x, y) in row.get("landmarks", {}).items():
        flat |= {f"{name}_x": x, f"{name}_y": y}
    return flat | {f"p_{k}": v for k, v in row.get("probabilities", {}).items()}
