"""Reading checkpoint files: undamaged ones only, and without running any code that they name.

`torch.save` writes a zip file whose members are not compressed and have a checksum each. The reader
of torch ignores the checksums, so a flipped bit would silently change the network's answers.
"""

import os
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

from qcs.checkpoints import zoo
from qcs.config.errors import UserError

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of before torch 1.6 begin
PREFIX = "network."  # of the network's tensors in a checkpoint
HEAD = 512  # bytes that tell what a file is
PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")
FOLDER = 0x10  # of a zip member's attributes
POINTER = b"version https://git-lfs"
MAGIC = {
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture or a sound",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
}


def located(path: str | os.PathLike, missing: str) -> Path:
    """Return the path of a regular file that may be read.

    Args:
        missing: the sentence where nothing is there.

    Raises:
        UserError: it is missing, a folder, a pipe or a device, or may not be read.
    """
    try:
        if not os.fspath(path):  # which would be this folder
            raise FileNotFoundError
        found = Path(path).expanduser()
        mode = found.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{found} is a folder; name a file in it")
        if not stat.S_ISREG(mode):
            raise UserError(f"{found} is no regular file but a pipe or a device")
        with found.open("rb"):
            return found
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(missing) from error
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a zero byte
        raise UserError(f"{path} cannot be opened: {reason(error)}") from error


def network_file(path: str | os.PathLike, missing: str) -> Path:
    """Return the file of a path, or of a name of `qcs zoo`, whose checksum is verified.

    Raises:
        UserError: as for `located` and `qcs.checkpoints.zoo.verify`.
    """
    path = zoo.find(path) or path
    found = located(path, zoo.absent(path) or missing)
    zoo.verify(found)
    return found


def foreign(path: Path) -> str | None:
    """Say what kind of file it is if its first bytes show that it is no checkpoint, else None."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return reason(error)
    if not head:
        return "it is empty"
    if head.startswith(POINTER):
        return "it is a Git LFS pointer in the place of the file: run `git lfs pull`"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return "it is a web page: download the file itself"
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            return f"it is {what}"
    if not any(byte < 9 or 13 < byte < 32 for byte in head) and _is_text(head):
        return "it is a text file"
    return None


def _is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8, of which the last character may be cut off."""
    for cut in range(min(4, len(head))):
        try:
            head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


def damage(path: Path, legacy: bool = False) -> str | None:
    """Say why a file is not an undamaged file of `torch.save`, or return None if it is one.

    Every checksum is verified. Compressed members are refused before they are unpacked, since they
    could be a decompression bomb.

    Args:
        legacy: take a file of before torch 1.6, which is no zip file and has no checksums.
    """
    if found := foreign(path):
        return found
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head.startswith(b"PK\x03\x04"):
        if LEGACY not in head:
            return "it is no file of torch.save"
        return None if legacy else "it is of torch's format before 1.6, which has no checksums"
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            names = [member.filename for member in members]
            if any(member.flag_bits & 1 for member in members):
                return "it is an encrypted zip file"
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "its members are compressed, which torch never does"
            # Torch reads nothing of a folder, and takes what was in memory for the tensor.
            if any(m.external_attr & FOLDER and not m.is_dir() for m in members):
                return "it is damaged: a member is called a folder; copy it anew"
            if sum(member.file_size for member in members) > path.stat().st_size:
                return "its members are larger than the file"
            if len(set(names)) < len(names):
                return "it holds two members of one name"
            if not any(name.endswith("data.pkl") for name in names):
                return "it is a zip file that torch.save did not write"
            if broken := file.testzip():
                return f"it is damaged: the checksum of {broken!r} is wrong; copy it anew"
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return f"it is damaged or cut short ({reason(error)}); copy it anew"
    except (OSError, RuntimeError, NotImplementedError, ValueError) as error:
        return reason(error)
    return None


def read(path: Path) -> Any:
    """Read a file of torch.save on the CPU: tensors and plain values alone.

    Raises:
        UserError: it is another kind of file, is damaged, or names code. The message holds the
            reason only, not the name of the file.
    """
    import torch  # here, since an export needs the other functions alone

    if found := damage(path):
        raise UserError(found)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in any way
        raise UserError(reason(error)) from error


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor of real numbers: not sparse, quantised, complex or meta."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not (value.is_quantized or value.is_complex() or value.is_meta)
    )


def reason(error: BaseException) -> str:
    """Return the one line of an error that says what is wrong, never an empty one.

    The message of torch begins with advice on how to read the file unsafely, which is left out.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it names {found[1]}, which is not run here"
    text = text.partition("WeightsUnpickler error: ")[2].strip() or text
    return text.splitlines()[0] if text else type(error).__name__
