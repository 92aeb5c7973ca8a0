"""Loader processes: how they start, how they end, and what their end means.

A process that loads images lives as long as the run wants it to. Signals that the system or SLURM
sends to all processes are the run's to answer; a signal from the run itself ends the loader.
"""

import gc
import multiprocessing.queues
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from qcs.config.errors import UserError

SHARED = Path("/dev/shm")  # where loader processes put their batches
PREFETCHED = 2  # batches of each loader process that wait there, torch's default
LINUX = sys.platform == "linux"
_FULL = re.compile(r"unable to \w+ .*shared memory")  # torch's words


class Loader(DataLoader):
    """A DataLoader whose processes are deaf to SIGTERM in all their threads, see `start`."""

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch; the processes inherit what is blocked here."""
        if not LINUX:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(worker: int) -> None:
    """Begin a loader process.

    A forked one keeps its garbage collector off the objects, so the pages, of its parent. It ends
    as soon as a batch cannot be sent, of which torch would only print a traceback and wait.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)
    if LINUX:
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End this process when its parent asks; other processes' SIGTERM is the parent's to answer."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _cannot_send(error: BaseException, batch: object) -> None:
    print(f"a loader process cannot send a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def free_shared_memory() -> int | None:
    """Bytes that are free in /dev/shm; None on a system without it."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else None


def require_shared_memory(batch: int, workers: int, batches: int) -> None:
    """Check that the batches of the loader processes have room.

    Args:
        batch: bytes of one.
        workers: number of loader processes.
        batches: of an epoch.

    Raises:
        UserError: they do not fit into /dev/shm.
    """
    needed, free = batch * min(workers * PREFETCHED, batches), free_shared_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{workers} loader processes need {needed / 2**20:.0f} MiB of shared memory for their "
            f"batches and {SHARED} has {free / 2**20:.0f} MiB free: write loader.num_workers=0, "
            "make the batches smaller, or give it more (docker run --shm-size=...)"
        )


@contextmanager
def told() -> Iterator[None]:
    """Say in one sentence what a loader process found, or why it is gone.

    Raises:
        UserError: in place of torch's error of a process that was killed or is too slow, and of a
            user's mistake that comes with the traceback of the process.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        if not text.startswith("Caught "):
            raise
        last = text.strip().splitlines()[-1]
        raise UserError(last.partition("UserError: ")[2] or last) from error
    except (RuntimeError, OSError, EOFError) as error:
        if sentence := _reason(error):
            raise UserError(sentence) from error
        raise


def _reason(error: Exception) -> str | None:
    """What torch's error says of the loader processes; None of one that is about something else."""
    text, free = str(error), free_shared_memory()
    room = "" if free is None else f" ({SHARED} has {free / 2**20:.0f} MiB free)"
    if not isinstance(error, RuntimeError):  # a batch was to come from a process that is gone
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if not any(file.endswith("resource_sharer.py") for file in files):
            return None
        text = "DataLoader worker (pid ?)"
    if _FULL.search(text):
        return (
            f"shared memory is too small for the batches of the loader processes{room}: write "
            "loader.num_workers=0, make the batches smaller, or give it more (docker run "
            "--shm-size=...)"
        )
    if "DataLoader timed out after" in text:
        return (
            "no batch came from the loader processes within loader.timeout seconds: the images "
            f"cannot be read fast enough, or shared memory is full{room}; write "
            "loader.num_workers=0, or a longer loader.timeout"
        )
    if "DataLoader worker (pid" in text:
        return (
            "a loader process was killed or ended: most often memory ran out, or shared memory"
            f"{room}; write fewer loader.num_workers or smaller batches"
        )
    return None
