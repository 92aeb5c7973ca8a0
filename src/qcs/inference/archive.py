"""An archive of predictions: a folder of Parquet parts to which each run adds.

A run goes on where the one before was stopped. Whenever a process is killed, each part is whole or
absent. The rows are themselves the list of what is done: every image has at least one, with the
size and time of its file, and all rows of an image or film are in one part. Each shard writes parts
of its own.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError, missing_extra, reason
from qcs.config.escape import terminal, utf8
from qcs.inference import parquet
from qcs.inference.done import Done
from qcs.inference.faces import Result
from qcs.inference.parquet import Identity, Part
from qcs.inference.pictures import Written
from qcs.inference.shards import Shard
from qcs.inference.sources import Source

log = logging.getLogger(__name__)

SUFFIX = ".parquet"
ROWS, SECONDS = 100_000, 120.0  # a part is finished after either; no more work is ever lost
PATIENCE = 600  # seconds that shards wait while another one takes rows out of parts
PART = re.compile(r"part-(\d+-of-\d+-)?\d+\.parquet")


@contextmanager
def _locked(path: Path, patience: float) -> Iterator[None]:
    """Hold a lock, which the system takes back however the process ends.

    Args:
        patience: seconds to wait for it.

    Raises:
        UserError: another process holds it, or the package filelock is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise missing_extra("archive", "Parquet needs") from error
    lock = FileLock(path)
    try:
        lock.acquire(patience)
    except Timeout as error:
        raise UserError(
            f"another process is writing to out={path.parent}: wait for its end, or give each its "
            "share with shard=1/2 and shard=2/2"
        ) from error
    except NotImplementedError:
        log.warning("no locks where %s lies: start each shard once only", terminal(path.parent))
    try:
        yield
    finally:
        lock.release()


class Archive:
    """Writes the rows of predictions, and knows which are there already.

    Args:
        files: all that this run is to read.
        features: the length of embeddings; None where there are none.
        made: the settings on which the rows depend; those of the parts that are there must be the
            same.
        shard: of this process, where there are several.
        restart: whether to delete all parts first.
        run_dir: the folder from which the names of pictures start.

    Attributes:
        done: says what is there already.

    Raises:
        UserError: pyarrow is missing. On entering: another process is at work, the folder holds
            other files, or its parts were made with other settings. The other methods: a part
            cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[Source],
        class_names: Sequence[str],
        features: int | None,
        made: dict[str, Any],
        shard: Shard | None = None,
        restart: bool = False,
        run_dir: Path = Path(),
    ) -> None:
        if restart and shard:
            raise UserError(
                f"restart=true would let each shard delete what the others write: delete {folder} "
                "first, and leave restart out"
            )
        self.folder, self.files, self.restart, self.run_dir = folder, files, restart, run_dir
        self.made = {"class_names": list(class_names), **made}
        self.columns = parquet.schema(class_names, features, self.made)
        self.shard = f"-{shard.name}" if shard else ""
        self.done = Done()
        self._part: Part | None = None
        self._current: Identity | None = None  # has more rows perhaps; None for a webcam
        self._webcams = {file.file for file in files if file.kind == "webcam"}
        self._number, self._began = 0, 0.0

    def __enter__(self) -> "Archive":
        with self._writable():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"out={self.folder} is a file: name a folder for the parts")
            self.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                stack.enter_context(_locked(self.folder / f".lock{self.shard}", 0))
                self._tidy()
                self._survey()
                self._lock = stack.pop_all()
        return self

    def _tidy(self) -> None:
        """Delete what a killed process left of a part, and all parts on a restart."""
        for path in self.folder.glob(f".*part{self.shard}-[0-9]*.tmp"):
            if self.shard or "-of-" not in path.name:
                path.unlink()
        for path in self._parts():
            if self.restart:
                path.unlink()

    def _parts(self) -> list[Path]:
        """The parts of all shards, sorted."""
        paths = sorted(p for p in self.folder.iterdir() if not p.name.startswith((".", "_")))
        if strange := [path for path in paths if not PART.fullmatch(path.name)]:
            raise UserError(
                f"out={self.folder} holds {strange[0].name}, which `qcs predict` has not written: "
                "name another folder"
            )
        return paths

    def _survey(self) -> None:
        """Find out what is done, and take out the rows of what is to be done anew."""
        parts = self._parts()
        own = (re.fullmatch(rf"part{self.shard}-(\d+)", path.stem) for path in parts)
        self._number = max((int(name[1]) + 1 for name in own if name), default=0)
        stale = self.done.read(parts, self.files, self.made)
        if stale:
            log.info(
                "images or films that have changed or could not be read, and are done anew: %d",
                sum(map(len, stale.values())),
            )
            with _locked(self.folder / ".lock-to-remove", PATIENCE):
                for path in self.folder.glob(f"{parquet.REMOVING}*{SUFFIX}"):
                    path.unlink()  # left by a killed process
                for path, gone in stale.items():
                    if path.exists():  # no other shard has emptied it
                        parquet.remove(path, gone)

    def frames(self) -> Iterator[Result]:
        """The frames of this run's films that are there already, as `parquet.frames` gives them."""
        films = {utf8(file.file): file for file in self.files if file.kind == "film"}
        for path in self._parts() if films else ():
            with suppress(FileNotFoundError):  # another shard has taken out all its rows
                yield from parquet.frames(path, films)

    @property
    def skipped(self) -> int:
        """The number of images and films that were there already."""
        return self.done.skipped

    @property
    def failed(self) -> int:
        """The number of those that could not be read."""
        return self.done.failed

    def write(self, result: Result, pictures: Written) -> None:
        """Add the rows of an image or frame."""
        with self._writable():
            rows = parquet.rows(result, pictures, self.run_dir)
            identity = rows[0]["file"], rows[0]["member"]
            old = time.monotonic() - self._began > SECONDS
            if self._part and identity != self._current and (old or self._part.number >= ROWS):
                self._finish()
            if self._part is None:
                path = self.folder / f"part{self.shard}-{self._number:06d}{SUFFIX}"
                self._part = Part(path, self.columns, f".{path.name}.tmp")
                self._began = time.monotonic()
                self._number += 1
            self._current = None if identity[0] in self._webcams else identity
            self._part.add(rows)

    def _finish(self, *unfinished: Identity) -> None:
        part, self._part = self._part, None
        if part:
            try:
                part.finish(unfinished)
            except BaseException:
                part.discard()
                raise

    def __exit__(self, kind: Any, *error: Any) -> None:
        """Finish the part.

        After an error or Ctrl-C the image or film that was read last is left out, as frames of it
        may be missing. A webcam is kept, as its recording ends in no other way.
        """
        try:
            with self._writable():
                self._finish(*([self._current] if kind and self._current else []))
        except UserError:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                raise
        finally:
            self._lock.close()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"out={self.folder} cannot be written ({reason(error)}): choose another place "
                "with out="
            ) from error
