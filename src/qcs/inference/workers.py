"""Photos read, searched for faces and cut by worker processes, in order.

A worker is a Python of its own that imports neither torch nor the caller's program, see
`qcs.inference.worker_process`. It is sent a few photos ahead and answers with cut faces, which are
small; no photo travels back. Each worker has a socket pair of its own, so that the photo on which
it was killed is known.
"""

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from PIL import Image

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.inference.crop import Crop
from qcs.inference.face_extraction import Look
from qcs.inference.inputs import Item, Key, read
from qcs.inference.sources import Source
from qcs.inference.worker_process import ASKS, READY, Job, Worker

log = logging.getLogger(__name__)

AHEAD = 4  # photos that a worker is sent before it has answered
MAX_WAITING = 50_000_000  # pixels of frames and cut faces that are held here
TIMEOUT = 120.0  # seconds for a photo


def looks(
    sources: Iterable[Source | Item],
    number: int,
    settings: dict[str, Any] | None,
    crop: Crop,
    timeout: float = TIMEOUT,
    kept: list[Worker] | None = None,
) -> Iterator[Look]:
    """Look at images in worker processes, and yield what was found in the order of the images.

    A photo that takes a worker too long, or over which two workers were killed, is an item with an
    error. The workers end with the iterator, or are kept.

    Args:
        sources: the images; those that are not read yet are read by the workers.
        number: of workers.
        settings: of the detector, which has one thread in each worker; None takes images as cut
            faces.
        crop: how faces are cut.
        timeout: seconds for a photo.
        kept: a list, empty at first, that holds the workers for the next call with the same
            settings. They end with this process, or if an iterator is not run to its end.

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
            workers.append(Worker((settings, crop)))
        yield from _Pool(sources, timeout, workers)
        idle = kept is not None
    finally:
        while workers and not idle:
            workers.pop().end()


class _Pool:
    def __init__(
        self, sources: Iterator[Source | Item], timeout: float, workers: list[Worker]
    ) -> None:
        self.sources, self.timeout, self.workers = sources, timeout, workers
        self.done: dict[int, Look] = {}
        self.head = self.next = self.held = 0
        self.large: deque[Worker] = deque()  # the first decodes a large photo, the others wait

    def __iter__(self) -> Iterator[Look]:
        while True:
            self._fill()
            if self.head in self.done:
                found = self.done.pop(self.head)
                self.head += 1
                self.held -= _pixels(found.source, found.crops)
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
            job, self.next = Job(self.next, source), self.next + 1
            self.held += _pixels(source)
            if source.error:
                item = read(source) if isinstance(source, Source) else source
                self._finish(job, Look(item, 0, [], []))
            else:
                worker.add(job)

    def _receive(self) -> None:
        """Wait for answers, take those that are there, and restart workers that take too long."""
        busy = [worker for worker in self.workers if worker.jobs]
        limit = min(worker.since for worker in busy) + self.timeout - time.monotonic()
        ready = wait(
            [worker.connection for worker in busy], None if limit == math.inf else max(limit, 0)
        )
        for worker in busy:
            if worker.connection in ready:
                self._take(worker)
            elif not ready and time.monotonic() - worker.since >= self.timeout:
                self._restart(worker, f"took longer than {self.timeout:g} seconds", give_up=True)

    def _take(self, worker: Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            status = worker.process.wait()
            by = f"signal {-status}" if status < 0 else f"status {status}"
            how = f"ended with {by} (often memory is too small)"
            return self._restart(worker, how, give_up=worker.jobs[0].ended)
        worker.since = time.monotonic()
        if message == READY:
            worker.ready = True
        elif message == ASKS:
            worker.since = math.inf
            self.large.append(worker)
            self._permit()
        elif isinstance(message, str):
            raise RuntimeError(f"in a worker process:\n{message}")
        else:
            job = worker.jobs.popleft()
            if isinstance(job.source, Item):
                message = message._replace(item=job.source)
            self._finish(job, message)
            self._release(worker)

    def _finish(self, job: Job, found: Look) -> None:
        self.done[job.number] = found = found._replace(source=job.source)
        self.held += _pixels(None, found.crops)

    def _restart(self, worker: Worker, how: str, give_up: bool) -> None:
        """Start a process again that ended or hangs; its first photo is to blame."""
        worker.end()
        if not worker.ready:
            raise UserError(f"a worker process {how} while it started: write a smaller workers=...")
        job = worker.jobs.popleft()
        name = _name(job.source)
        if give_up:
            why = f"gave up {name}: a {'second ' * job.ended}worker process {how}"
            self._finish(job, Look(_failed(job.source, why), 0, [], []))
        else:
            log.warning("a worker process ended at %s, which is tried again", terminal(name))
            worker.jobs.appendleft(job._replace(ended=True))
        self._release(worker)
        worker.start()

    def _release(self, worker: Worker) -> None:
        if worker in self.large:
            self.large.remove(worker)
            self._permit()

    def _permit(self) -> None:
        """Let the first worker of the queue decode its large photo, if it does not do so yet."""
        if self.large and self.large[0].since == math.inf:
            self.large[0].since = time.monotonic()
            self.large[0].send(None)


def _pixels(source: Source | Item | None, crops: Sequence[Image.Image] = ()) -> int:
    """The pixels of an item's image and of cut faces, as they are held here."""
    images = [source.image, *crops] if isinstance(source, Item) else crops
    return sum(image.width * image.height for image in images if image)


def _name(source: Source | Item) -> str:
    """How a sentence names a photo or frame; one that Python was given has no name."""
    place = source.key if isinstance(source, Item) else source
    if not isinstance(place, (Key, Source)):
        return "an image"
    if isinstance(place, Key) and place.frame is not None:
        return f"frame {place.frame} of {place.file}"
    return place.file if place.member is None else f"{place.member} in {place.file}"


def _failed(source: Source | Item, why: str) -> Item:
    """The item of a photo or frame that failed; it has no stamp, so an archive tries it again."""
    if isinstance(source, Source):
        return read(source._replace(error=why, stamp=None))
    key = source.key._replace(stamp=None) if isinstance(source.key, Key) else source.key
    return Item(key, error=why)
