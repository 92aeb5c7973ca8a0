"""The folder of a training run: only one process at a time writes there, after all checks."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO

from qcs.config.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

LOCK, CONFIG, LOG = ".lock", "config.yaml", "train.log"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from training in a folder, until the block or this process ends.

    The operating system holds the lock for this process alone. A killed process therefore leaves
    none behind, and loader workers do not inherit it. On a network drive without locks, a warning
    is logged instead. The folder is made if it does not exist, and removed at the end if nothing
    was written.

    Raises:
        UserError: another process trains there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(
            f"cannot write into the run's folder {folder}: {error.strerror}; "
            "choose another with hydra.run.dir=..."
        ) from error
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:  # systems report a lock in two ways
            raise UserError(
                f"another process is training in {folder}: wait for it or stop it, or choose "
                "another folder with hydra.run.dir=..."
            ) from error
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): start no second process there", folder, error.strerror
            )
        try:
            yield
        finally:
            with suppress(OSError):  # such as that it has become another's
                if [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        # Loader workers would inherit a lock of `flock`, and outlive a killed parent for a while.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def refuse_second_run(folder: Path) -> None:
    """Check that a new run does not write over another one.

    Raises:
        UserError: the folder holds a run already.
    """
    if (folder / CONFIG).exists() or any(folder.glob("checkpoints/*.ckpt")):
        raise UserError(
            f"{folder} holds a run already: write ckpt=last to go on with it (ckpt=auto where it "
            "may have saved nothing yet), or choose another folder with hydra.run.dir=..."
        )


@contextmanager
def deferred_log(name: str = LOG) -> Iterator["DeferredLog"]:
    """Keep the lines of the log in memory until the run is certain to write to its folder.

    The lines of a run that is refused are on the screen alone. The log's `open_in` writes them to a
    folder, into a file of that name.
    """
    root, handler = logging.getLogger(), DeferredLog(name)
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        if handler.target is not None:
            with suppress(OSError):  # it has lines for which there is no room
                handler.target.close()
        handler.close()


def go_on(folder: Path) -> str:
    """The overrides by which the same command goes on with what was saved in a run's folder."""
    alone = f"hydra.run.dir={folder} ckpt=last"
    multirun = folder.parent / "multirun.yaml"
    if not multirun.exists():
        return alone
    if "qcs_optuna" in multirun.read_text(encoding="utf-8"):
        return "nothing more: the search tries these values again"
    return f"hydra.sweep.dir={folder.parent} ckpt=auto (without -m, one job: {alone})"


class _LogFile(logging.FileHandler):
    """A log file that may miss lines: they are on the screen, and whoever saves tells why."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for each line that the disk has no room for."""


class DeferredLog(MemoryHandler):
    """Keeps lines in memory until the folder of the log file is known, and then writes them."""

    def __init__(self, name: str) -> None:
        super().__init__(capacity=100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self.file_name = name

    def open_in(self, folder: Path) -> None:
        """Write the lines so far into a folder, and from now on every line at once."""
        target = _LogFile(folder / self.file_name, encoding="utf-8")
        target.setFormatter(
            logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
        )
        self.setTarget(target)
        self.capacity = 1
        self.flush()
