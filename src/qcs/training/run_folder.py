"""The folder of a training run: one process at a time writes in it, and only after the checks."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO

from qcs.config.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

log = logging.getLogger(__name__)

LOCK, CONFIG, LOG = ".lock", "config.yaml", "train.log"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process from training in a folder, until this one leaves it or dies.

    The lock is the operating system's and of this process alone: a killed process leaves none
    behind, and loader workers do not inherit it. A network drive without locks is warned of.

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
        except (BlockingIOError, PermissionError) as error:  # the two ways to say "taken"
            raise UserError(
                f"another process is training in {folder}: wait for it or stop it, or choose "
                "another folder with hydra.run.dir=..."
            ) from error
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): start no second process there", folder, error.strerror
            )
        yield


def _lock(file: IO[str]) -> None:
    if os.name == "nt":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:  # not flock: workers would inherit it, and keep it for a while after their parent's death
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def refuse_second_run(folder: Path) -> None:
    """Keep a new run out of a folder that holds one.

    Raises:
        UserError: it does.
    """
    if (folder / CONFIG).exists() or any(folder.glob("checkpoints/*.ckpt")):
        raise UserError(
            f"{folder} holds a run already: write ckpt=last to go on with it (ckpt=auto where it "
            "may have saved nothing yet), or choose another folder with hydra.run.dir=..."
        )


@contextmanager
def held_back(name: str = LOG) -> Iterator["Log"]:
    """Hold log lines back from the run's folder until it is certain that the run will write there.

    Yields:
        the log, to be opened in that folder; lines of a run that is refused are only on the screen.
    """
    root, found = logging.getLogger(), Log(name)
    root.addHandler(found)
    try:
        yield found
    finally:
        root.removeHandler(found)
        if found.target is not None:
            found.target.close()
        found.close()


class Log(MemoryHandler):
    """Keeps lines in memory until it is told the folder of the file, and then writes each."""

    def __init__(self, name: str) -> None:
        super().__init__(capacity=100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self.file_name = name

    def open_in(self, folder: Path) -> None:
        """Write what was held back, and from now on every line at once."""
        target = logging.FileHandler(folder / self.file_name, encoding="utf-8")
        target.setFormatter(
            logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
        )
        self.setTarget(target)
        self.capacity = 1
        self.flush()
