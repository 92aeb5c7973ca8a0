"""Predictions as Parquet files: their columns, and how a file is written whole or not at all.

K classes, C features.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qcs.config.errors import UserError
from qcs.config.escape import utf8
from qcs.config.version import __version__
from qcs.data.folders import sync
from qcs.inference.faces import SIDES, Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.lists import arrow
from qcs.inference.pictures import Written
from qcs.inference.sources import Source, Stamp

if TYPE_CHECKING:
    import pyarrow as pa

REMOVING = ".removing-"  # begins the name of a file without the rows that are taken out
GROUP = 2_000  # rows that are held in memory and written at once
Identity = tuple[str, str | None]  # of an image or film: its file, and its member of a tar


class Seen(NamedTuple):
    """What the rows of an image or film say of their source."""

    identity: Identity
    stamp: Stamp | None
    failed: bool


def schema(class_names: Sequence[str], features: int | None, made: Mapping[str, Any]) -> Any:
    """The columns, and what the files say of how they were made.

    Lists have no fixed size in the schema, as pyarrow 22 cannot write a null among such.

    Args:
        features: C; None where no embeddings are written.
        made: the settings of the run, as plain data.
    """
    pa = arrow()
    edges = [(name, pa.float32()) for name in (*SIDES, "score")]
    embedding = [("embedding", pa.list_(pa.float16()))] if features else []
    about = {"class_names": list(class_names), "settings": made, "qcs_version": __version__}
    return pa.schema(
        [
            ("file", pa.string()),
            ("member", pa.string()),
            ("frame", pa.int64()),
            ("seconds", pa.float64()),
            ("face", pa.int32()),
            ("person", pa.int32()),
            *edges,
            ("landmarks", pa.list_(pa.float32())),
            ("label", pa.dictionary(pa.int16(), pa.string())),
            ("probability", pa.float32()),
            ("probabilities", pa.list_(pa.float32())),
            *embedding,
            ("annotated", pa.string()),
            ("crop", pa.string()),
            ("error", pa.string()),
            ("bytes", pa.int64()),
            ("modified", pa.timestamp("ns", "UTC")),
        ],
        {key: json.dumps(value) for key, value in about.items()},
    )


def rows(result: Result, pictures: Written, run_dir: Path) -> list[dict[str, Any]]:
    """A row for each face, or one row without a face.

    Args:
        run_dir: the folder from which their names start.
    """
    key = result.key
    size, modified = key.stamp or (None, None)
    place: dict[str, Any] = {"file": utf8(key.file), "member": key.member and utf8(key.member)}
    place |= {"frame": key.frame, "seconds": key.seconds, "bytes": size, "modified": modified}
    place |= {"annotated": pictures.annotated and utf8(str(run_dir / pictures.annotated))}
    place |= {"error": result.error and utf8(result.error)}
    faces = [{"face": n, **_face(prediction)} for n, prediction in enumerate(result.predictions)]
    for face, crop in zip(faces, pictures.crops, strict=False):
        face["crop"] = utf8(str(run_dir / crop))
    return [place | face for face in faces or [{}]]


def _face(prediction: Prediction) -> dict[str, Any]:
    points = prediction.landmarks
    return {
        **dict(zip(SIDES, prediction.box or (), strict=False)),
        "person": prediction.person,
        "score": prediction.score,
        "landmarks": points and [number for point in points for number in point],
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": list(prediction.probabilities.values()),
        "embedding": prediction.embedding,
    }


class Part:
    """A Parquet file that is written under a hidden name beside its own, until it is whole.

    Args:
        hidden: the name until then.

    Attributes:
        number: of the rows so far.
    """

    def __init__(self, path: Path, columns: "pa.Schema", hidden: str) -> None:
        self.path, self.columns, self.number = path, columns, 0
        self.hidden = path.with_name(hidden)
        self._waiting: list[dict[str, Any]] = []
        self._file = self.hidden.open("wb")
        parquet = arrow().parquet
        self._writer = parquet.ParquetWriter(self._file, columns, compression="zstd")

    def add(self, found: Sequence[dict[str, Any]]) -> None:
        """Add rows of `rows`."""
        self._waiting += found
        self.number += len(found)
        if len(self._waiting) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        table = arrow().Table.from_pylist(self._waiting, schema=self.columns)
        self._writer.write_table(table)
        self._waiting = []

    def add_batch(self, batch: "pa.RecordBatch") -> None:
        """Add rows of another such file."""
        self._writer.write_batch(batch)
        self.number += len(batch)

    def finish(self, without: Collection[Identity] = ()) -> None:
        """Put the file into its place, but for the rows of some images."""
        if self._waiting:
            self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not without or remove(self.hidden, without):
            os.replace(self.hidden, self.path)
            sync(self.path.parent)

    def discard(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(Exception):  # the disk may be full
            self._writer.close()
        self._file.close()
        self.hidden.unlink(missing_ok=True)


def remove(path: Path, gone: Collection[Identity]) -> bool:
    """Take the rows of some images out of a file, which is deleted where none are left.

    Returns:
        Whether some are left.
    """
    part = None
    with arrow().parquet.ParquetFile(path) as old:
        for batch in old.iter_batches(GROUP):
            kept = [identity not in gone for identity in _identities(batch)]
            batch = batch.filter(arrow().array(kept))
            if len(batch):
                part = part or Part(path, old.schema_arrow, REMOVING + path.name)
                part.add_batch(batch)
    if part:
        part.finish()
    else:
        path.unlink()
        sync(path.parent)
    return part is not None


def _identities(batch: "pa.RecordBatch") -> Iterator[Identity]:
    columns = (batch.column(name).to_pylist() for name in ("file", "member"))
    return zip(*columns, strict=True)


def frames(path: Path, films: Mapping[str, Source]) -> Iterator[Result]:
    """The frames of some films of which a file has rows; faces have labels and persons alone.

    Args:
        films: by what their rows call them.
    """
    place, face = ("file", "frame", "seconds"), ("person", "label", "probability")
    with arrow().parquet.ParquetFile(path) as part:
        batches = part.iter_batches(GROUP, columns=[*place, *face])
        framed = (batch.filter(batch.column("frame").is_valid()) for batch in batches)
        rows = (row for batch in framed for row in batch.to_pylist() if row["file"] in films)
        for (file, *when), faces in groupby(rows, itemgetter(*place)):
            found = [
                Prediction(row["label"], row["probability"], {}, person=row["person"])
                for row in faces if row["label"] is not None
            ]  # fmt: skip
            yield Result(Key(films[file].file, films[file].name, *when), None, None, found, [])


def seen(path: Path) -> tuple[dict[str, Any], set[Seen]]:
    """What a file says of its settings, and of which images and films it has rows.

    Raises:
        UserError: it is not such a file, or damaged.
    """
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as part:
            about = part.schema_arrow.metadata or {}
            made = json.loads(about[b"settings"])
            found: set[Seen] = set()
            names = ["file", "member", "bytes", "modified", "error"]
            for batch in part.iter_batches(GROUP, columns=names):
                sizes = batch.column("bytes").to_pylist()
                times = batch.column("modified").cast(pa.int64()).to_pylist()
                stamps = (
                    None if size is None else (size, time)
                    for size, time in zip(sizes, times, strict=True)
                )
                failed = batch.column("error").is_valid().to_pylist()
                found.update(map(Seen, _identities(batch), stamps, failed))
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, or no part that `qcs predict` has written: delete it, and what "
            "it held is done anew"
        ) from error
    return made, found
