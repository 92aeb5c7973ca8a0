"""The file in which the answers of teachers are kept, see `qcs.training.teachers`.

N images, K classes.
"""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from qcs.config.errors import UserError

_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile,
)  # fmt: skip


def exists(path: Path) -> bool:
    """Whether there is anything at a path.

    Raises:
        UserError: that cannot be told.
    """
    try:
        return path.exists()
    except OSError as error:
        raise _unusable(path, error) from error


def make_folder(path: Path) -> None:
    """Make the folder of a file, and see that it can be written to before there is work to lose.

    Raises:
        UserError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"callbacks.teachers.answers={path} cannot be used ({error.strerror or error}): name a "
        "file in a folder that can be written to"
    )


def write(path: Path, key: str, table: np.ndarray) -> None:
    """Write the answers (N, K) and the key of what they are of, whole or not at all.

    Raises:
        UserError: they cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, key=np.array(key), answers=table)
        part.replace(path)
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray:
    """Read the answers (N, K) of a file of `write`, float32.

    Raises:
        UserError: it cannot be read, or was written for other teachers or images.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            found, table = str(content["key"]), content["answers"]
    except _DAMAGED as error:
        raise UserError(
            f"callbacks.teachers.answers={path} cannot be read ({error}): name a new file"
        ) from error
    if found != key or table.shape != shape:
        raise UserError(
            f"callbacks.teachers.answers={path} holds answers of other teachers, or for other "
            "images, as those that another seed leaves to train on: name a new file"
        )
    return table.astype(np.float32)
