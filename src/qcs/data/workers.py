"""The processes that load batches: how they start, how they end, and what their errors mean.

Such a process lives as long as the run that started it wants. The system or SLURM may send SIGTERM
to all processes at once; the run alone answers it, and the loader processes go on. A SIGTERM from
the run itself ends them.
"""

import gc
import multiprocessing.queues
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qcs.config.errors import UserError

SHARED = Path("/dev/shm")  # where loader processes put their batches
PREFETCHED = 2  # the batches of each loader process that wait there; torch's default
LINUX = sys.platform == "linux"
BEGIN = (2.0, 8.0, 20.0)  # seconds that a process has to begin, each time that it is forked
GRACE = 1.0  # seconds after which a process that was told to end, or that sent no batch, is killed
_FULL = re.compile(r"unable to \w+ .*shared memory")  # as torch words it


class _Started(Popen):
    """A process that ends where it is told to, also if it hangs or was stopped by SIGSTOP."""

    def terminate(self) -> None:
        super().terminate()
        if self.wait(GRACE) is None:
            self.kill()
            self.wait()


class _LoaderProcess(ForkProcess):
    """A process that is forked again where it does not begin.

    A fork copies the locks of all threads but not the threads, so the new process waits for ever
    for one that another thread held. Until Python 3.11.7 the interpreter itself does
    (github.com/python/cpython/issues/112275), most likely beside the threads of a process group.
    """

    _begun: int  # the end of a pipe on which the process says that it begins

    @staticmethod
    def _Popen(process: Any) -> Popen:
        for patience in BEGIN:
            begun, process._begun = os.pipe()
            started = _Started(process)
            os.close(process._begun)
            ready = wait([begun], patience)
            os.close(begun)
            if ready:
                return started
            started.kill()
            started.wait()
        raise UserError(
            f"a loader process hung {len(BEGIN)} times while it was started: "
            "write loader.num_workers=0"
        )

    def run(self) -> None:
        os.close(self._begun)
        super().run()


class _LoaderContext(ForkContext):
    Process = _LoaderProcess


class Loader(DataLoader):
    """A DataLoader whose processes block SIGTERM in all their threads, see `start`.

    `__iter__` returns any iterator, where DataLoader promises one of a private class.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Begin an epoch; processes that are started now inherit the signals that are blocked."""
        if not LINUX:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            batches: Iterator[Any] = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._in_time(batches) if self.timeout else batches

    def _in_time(self, batches: Iterator[Any]) -> Iterator[Any]:
        """End the processes where a batch does not come, as torch's timeout alone is not enough.

        It ends before a batch is taken from the shared memory of its process, and torch asks the
        process for that and waits for ever where all of it hangs.
        """
        while True:
            began = time.monotonic()
            watch = threading.Timer(self.timeout + GRACE, _end_processes)
            watch.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if time.monotonic() - began < self.timeout:
                    raise
                with suppress(RuntimeError):  # torch's handler of SIGCHLD
                    _end_processes()
                raise RuntimeError(f"DataLoader timed out after {self.timeout} seconds") from error
            finally:
                watch.cancel()
                watch.join()  # so that no lock of its is copied by a fork
            yield batch


def _end_processes() -> None:
    for process in multiprocessing.active_children():
        if isinstance(process, _LoaderProcess):
            process.terminate()


def loader_options(num_workers: int, timeout: int, seed: int) -> dict[str, Any]:
    """The arguments of a `Loader` that have to do with its processes.

    Args:
        num_workers: number of processes; 0 loads in this one.
        timeout: seconds to wait for a batch of theirs; 0 waits for ever.
        seed: of the loader's own random numbers.
    """
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "timeout": timeout if num_workers else 0,
        # A forked process shares the memory of the data set; otherwise it would be sent a copy.
        "multiprocessing_context": _LoaderContext() if num_workers and LINUX else None,
        "worker_init_fn": start,
        "pin_memory": torch.cuda.is_available(),
        # A generator of its own, so that starting a loader leaves those of the training alone.
        "generator": torch.Generator().manual_seed(seed),
    }


def start(worker: int) -> None:
    """Set up a loader process, as DataLoader's `worker_init_fn`.

    The garbage collector of a forked process leaves the objects of its parent alone, so that their
    memory stays shared. Ctrl-C is left to the parent. When a batch cannot be sent, the process
    ends; torch would print a traceback and let the run wait for the batch.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]
    if LINUX:
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    """End this process at a SIGTERM from its parent; ignore one from any other process."""
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
    """Check that an epoch's batches, of so many bytes each, have room in shared memory.

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
def translated_errors(group: str = "") -> Iterator[None]:
    """Turn torch's errors about loader processes into one sentence.

    Args:
        group: of the key `num_workers` in the command's settings, as "loader.".

    Raises:
        UserError: a process was killed or is too slow, or it met a mistake of the user's, which
            torch wraps into the traceback of the process.
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
        try:
            sentence = _reason(error, group)
        except RuntimeError as late:  # torch's handler of SIGCHLD raises wherever we happen to be
            sentence = _reason(late, group)
        if sentence:
            raise UserError(sentence) from error
        raise


def _reason(error: Exception, group: str) -> str | None:
    """What an error of torch's means for the user; None where it is about something else."""
    text, free = str(error), free_shared_memory()
    room = "" if free is None else f" ({SHARED} has {free / 2**20:.0f} MiB free)"
    if not isinstance(error, RuntimeError):  # a process is gone from which a batch was being read
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if not any(file.endswith("resource_sharer.py") for file in files):
            return None
        text = "DataLoader worker (pid ?)"
    if _FULL.search(text):
        return (
            f"shared memory is too small for the batches of the loader processes{room}: write "
            f"{group}num_workers=0, make the batches smaller, or give it more (docker run "
            "--shm-size=...)"
        )
    if "DataLoader timed out after" in text:
        return (
            f"no batch came from the loader processes within {group}timeout seconds: the images "
            f"cannot be read fast enough, or shared memory is full{room}; write "
            f"{group}num_workers=0, or a longer {group}timeout"
        )
    if "ulimit -n" in text or "items of ancdata" in text:
        return (
            "the loader processes need more open files than the system allows: raise the limit, as "
            f"by `ulimit -n 4096`, or write {group}num_workers=0"
        )
    if "DataLoader worker (pid" in text:
        return (
            "a loader process was killed or ended: most often memory ran out, or shared memory"
            f"{room}; write fewer {group}num_workers or smaller batches"
        )
    return None
