"""Photos read, searched for faces and cut by worker processes, in order.

A worker is a Python of its own that imports neither torch nor the caller's program, see
`qcs.inference.face_extraction.work`. It is sent a few photos ahead and answers with cut faces,
which are small, so no photo travels back. Each worker has a socket pair of its own: when it is
killed, the photo on which it worked is known.
"""

import itertools
import logging
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from PIL import Image

from qcs.config.errors import UserError, reason
from qcs.config.escape import terminal
from qcs.inference.crops import Crop
from qcs.inference.face_extraction import ASKS, READY, Look
from qcs.inference.inputs import Item, Key, read
from qcs.inference.sources import Source

log = logging.getLogger(__name__)

AHEAD = 4  # photos that a worker is sent before it has answered
MAX_WAITING = 50_000_000  # pixels of frames and cut faces that are held here
TIMEOUT = 120.0  # seconds for a photo
STARTING = 60.0  # seconds more for a process that starts
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class _Job(NamedTuple):
    number: int
    source: Source | Item
    ended: bool = False  # whether a worker was killed over it


def looks(
    sources: Iterable[Source | Item],
    number: int,
    settings: dict[str, Any] | None,
    crop: Crop,
    timeout: float = TIMEOUT,
    kept: "list[_Worker] | None" = None,
) -> Iterator[Look]:
    """Look at images in worker processes, and yield what was found in the order of the images.

    A photo over which a worker is killed twice, or which takes a worker too long, is an item with
    an error. The workers end with the iterator, or are kept.

    Args:
        sources: the images; those that are not read yet are read by the workers.
        number: of workers.
        settings: of the workers' detectors, each of one thread; None takes images as cut faces.
        crop: how faces are cut.
        timeout: seconds for a photo.
        kept: a list, empty at first, that holds the workers for the next call with the same
            settings. They end where an iterator is not run to its end, and with this process.

    Raises:
        UserError: a worker cannot be started, or is killed while it starts.
        RuntimeError: a bug; with the traceback of the worker.
    """
    sources = iter(sources)
    if (first := next(sources, None)) is None:
        return
    sources = itertools.chain([first], sources)
    workers = [] if kept is None else kept
    idle = False
    try:
        while len(workers) < number:
            workers.append(_Worker((settings, crop)))
        yield from _Pool(sources, timeout, workers)
        idle = kept is not None
    finally:
        while workers and not idle:
            workers.pop().end()


class _Worker:
    """A process, and the photos that it was sent, on the first of which it works."""

    def __init__(self, setup: Any) -> None:
        self.setup = setup
        self.jobs: deque[_Job] = deque()
        self.start()

    def start(self) -> None:
        """Start the process and send it the photos."""
        self.connection, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}\n"
            f"from qcs.inference.face_extraction import work; work({theirs.fileno()})"
        )
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | ONE_THREAD,
                    start_new_session=True,  # Ctrl-C is for its parent alone, which ends it
                )
        except OSError as error:
            raise UserError(
                f"a worker process cannot be started ({reason(error)}): write a smaller workers=..."
            ) from error
        self.ready, self.since = False, time.monotonic() + STARTING
        self.send(self.setup)
        for job in self.jobs:
            self.send_photo(job.source)

    def add(self, job: _Job) -> None:
        """Take on a photo."""
        if not self.jobs and self.ready:
            self.since = time.monotonic()
        self.jobs.append(job)
        self.send_photo(job.source)

    def send_photo(self, source: Source | Item) -> None:
        """Send a photo, without a key of the caller's, which may be anything."""
        self.send(source if isinstance(source, Source) else source._replace(key=None))

    def send(self, message: Any) -> None:
        """Send something; a process that is gone is noticed when nothing comes back."""
        with suppress(OSError):
            self.connection.send(message)

    def end(self) -> int:
        """Kill the process, and return its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Pool:
    def __init__(
        self, sources: Iterator[Source | Item], timeout: float, workers: list[_Worker]
    ) -> None:
        self.sources, self.timeout, self.workers = sources, timeout, workers
        self.done: dict[int, Look] = {}
        self.head = self.next = self.held = 0
        self.large: _Worker | None = None  # decodes a large photo
        self.asking: deque[_Worker] = deque()  # would like to

    def __iter__(self) -> Iterator[Look]:
        while True:
            self._fill()
            if self.head in self.done:
                found = self.done.pop(self.head)
                self.head += 1
                self.held -= _pixels(found.crops) + _pixels([_frame(found.source)])
                yield found
            elif self.head == self.next:
                return
            else:
                self._receive()

    def _fill(self) -> None:
        """Send photos to the workers that have the fewest."""
        window = 2 * AHEAD * len(self.workers)  # photos that may be ahead of the slowest
        while self.next < self.head + window and self.held < MAX_WAITING:
            worker = min(self.workers, key=lambda worker: len(worker.jobs))
            if len(worker.jobs) >= AHEAD or (source := next(self.sources, None)) is None:
                return
            job, self.next = _Job(self.next, source), self.next + 1
            self.held += _pixels([_frame(source)])
            if source.error:
                item = read(source) if isinstance(source, Source) else source
                self._finish(job, Look(item, 0, [], []))
            else:
                worker.add(job)

    def _receive(self) -> None:
        """Take the answers that are there; wait for the first, and for none of them too long."""
        busy = [worker for worker in self.workers if worker.jobs]
        limit = min(worker.since for worker in busy) + self.timeout - time.monotonic()
        ready = wait(
            [worker.connection for worker in busy], None if limit == math.inf else max(limit, 0)
        )
        for worker in busy:
            if worker.connection in ready:
                self._take(worker)
            elif not ready and time.monotonic() - worker.since >= self.timeout:
                why = f"a worker process was at it for {self.timeout:g} seconds"
                self._restart(worker, why, give_up=True)

    def _take(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            status = worker.process.wait()
            by = f"signal {-status}" if status < 0 else f"status {status}"
            why = f"two worker processes ended over it, with {by}; often memory is too small"
            return self._restart(worker, why, give_up=worker.jobs[0].ended)
        worker.since = time.monotonic()
        if message == READY:
            worker.ready = True
        elif message == ASKS:
            worker.since = math.inf
            self.asking.append(worker)
            self._permit()
        elif isinstance(message, str):
            raise RuntimeError(f"in a worker process:\n{message}")
        else:
            job = worker.jobs.popleft()
            if isinstance(job.source, Item):
                message = message._replace(item=job.source)
            self._finish(job, message)
            self._release(worker)

    def _finish(self, job: _Job, found: Look) -> None:
        self.done[job.number] = found = found._replace(source=job.source)
        self.held += _pixels(found.crops)

    def _restart(self, worker: _Worker, why: str, give_up: bool) -> None:
        """Start a process anew that ended or hangs; its first photo is to blame."""
        worker.end()
        if not worker.ready:
            raise UserError(f"a worker process did not start ({why}): write a smaller workers=...")
        job = worker.jobs.popleft()
        if give_up:
            self._finish(job, Look(_failed(job.source, why), 0, [], []))
        else:
            log.warning("a worker process ended at %s, which is tried again", _name(job.source))
            worker.jobs.appendleft(job._replace(ended=True))
        self.asking = deque(other for other in self.asking if other is not worker)
        self._release(worker)
        worker.start()

    def _release(self, worker: _Worker) -> None:
        if self.large is worker:
            self.large = None
            self._permit()

    def _permit(self) -> None:
        """Let the next worker decode a large photo, unless one does so."""
        if self.large is None and self.asking:
            self.large = self.asking.popleft()
            self.large.since = time.monotonic()
            self.large.send(None)


def _frame(source: Source | Item | None) -> Image.Image | None:
    """The image of an item, which is held here until it is answered."""
    return source.image if isinstance(source, Item) else None


def _pixels(images: Iterable[Image.Image | None]) -> int:
    return sum(image.width * image.height for image in images if image)


def _name(source: Source | Item) -> str:
    key = source.key if isinstance(source, Item) else source
    return terminal(getattr(key, "member", None) or getattr(key, "file", key))


def _failed(source: Source | Item, why: str) -> Item:
    """The item of a photo or frame that failed here; without a stamp, so that it is tried again."""
    if isinstance(source, Source):
        return read(source._replace(error=why, stamp=None))
    key = source.key._replace(stamp=None) if isinstance(source.key, Key) else source.key
    return Item(key, error=why)
