"""A worker process, from both ends: `Worker` is what the caller has of it, `work` is what it does.

The caller sends how faces are found and cut, then photos, and None as the permit to decode a large
one. The process says that it is ready, asks for permits, and answers each photo with a `Look`, or
with the traceback of a bug as a text.
"""

import os
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from PIL import Image

from qcs.config.errors import UserError, reason
from qcs.inference.crop import Crop
from qcs.inference.detector import Detector
from qcs.inference.face_extraction import Look, look
from qcs.inference.inputs import Item
from qcs.inference.sources import Source

LARGE = 16_000_000  # pixels; of the photos that have more, one is decoded at a time
READY, ASKS = "ready", "asks to decode a large photo"
STARTING = 60.0  # seconds that a process has to start, beside those for its first photo
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class Job(NamedTuple):
    """A photo or frame that a worker is to look at."""

    number: int
    source: Source | Item
    ended: bool = False  # whether a worker was killed over it


class Worker:
    """A process, and the photos that it was sent; it works on the first of them."""

    def __init__(self, setup: Any) -> None:
        self.setup = setup
        self.jobs: deque[Job] = deque()
        self.start()

    def start(self) -> None:
        """Start the process and send it the photos."""
        self.connection, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}\n"
            f"from qcs.inference.worker_process import work; work({theirs.fileno()})"
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
            self.send(job.source)

    def add(self, job: Job) -> None:
        """Take on a photo."""
        if not self.jobs and self.ready:
            self.since = time.monotonic()
        self.jobs.append(job)
        self.send(job.source)

    def send(self, message: Any) -> None:
        """Send a photo or something else; a process that is gone is noticed as it does not answer.

        A photo goes without the key that the caller gave it, which may be anything.
        """
        if isinstance(message, Item):
            message = message._replace(key=None)
        with suppress(OSError):
            self.connection.send(message)

    def end(self) -> int:
        """Kill the process, and return its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


def work(descriptor: int) -> None:
    """Answer the photos that come through a socket, until the caller is gone."""
    connection = Connection(descriptor)
    settings, crop = connection.recv()
    photos: SimpleQueue = SimpleQueue()
    permits: SimpleQueue = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, photos, permits), daemon=True).start()
    detector = None if settings is None else Detector(**settings, threads=1)

    def opened(image: Image.Image) -> None:
        if image.width * image.height > LARGE:
            connection.send(ASKS)
            permits.get()

    try:
        connection.send(READY)
        while True:
            connection.send(_answer(photos.get(), detector, crop, opened))
    except OSError:  # the caller is gone
        os._exit(0)


def _listen(connection: Connection, photos: SimpleQueue, permits: SimpleQueue) -> None:
    """Take what the caller sends, so that it never waits; end with the caller."""
    try:
        while True:
            message = connection.recv()
            (permits if message is None else photos).put(message)
    except (EOFError, OSError):
        os._exit(0)


def _answer(source: Source | Item, detector: Any, crop: Crop, opened: Any) -> Look | str:
    """What is sent back of a photo, without the photo; of a bug, its traceback."""
    try:
        found = look(source, detector, crop, opened)
        return found._replace(item=found.item._replace(image=None))
    except Exception:
        return traceback.format_exc()
