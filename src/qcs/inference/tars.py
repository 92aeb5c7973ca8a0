"""Images in tar files, as WebDataset lays them out: shard-000000.tar, shard-000001.tar, ...

A tar is read from its beginning to its end, once. None of its members is written to the disk, and
links and devices in it are not followed. https://github.com/webdataset/webdataset
"""

import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from qcs.config.errors import UserError
from qcs.data.containers import BROKEN, MAX_BYTES
from qcs.data.folders import is_junk, warn_left_out
from qcs.data.images import is_image, open_file

log = logging.getLogger(__name__)

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BLOCK = 512  # bytes, of which a tar is made
Member = tuple[str, Callable[[], bytes]]  # the name of an image, and what reads its file


def images(path: str) -> Iterator[Member]:
    """Go through the images of a tar; each is read only if its function is called at once.

    Raises:
        UserError: the tar is truncated or damaged; raised after the images before that place. Or
            it holds no image. The functions raise it for a link, a device or too large a member.
    """
    found, others = 0, []
    with open_file(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in _members(tar):
                    name = os.path.basename(member.name)
                    if member.isdir() or is_junk(name):
                        continue
                    if is_image(name):
                        found += 1
                        yield member.name, partial(_content, tar, member)
                    else:
                        others.append(Path(name))
                file.seek(tar.offset)
                end = file.read(BLOCK)
        except tarfile.TarError as error:
            raise UserError(f"it is truncated, damaged or no tar: {error}") from error
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(f"it is damaged ({type(error).__name__}: {error})") from error
    warn_left_out(path, others, kind="members that are no images")
    if end != bytes(BLOCK):  # tarfile takes a damaged header for the end
        raise UserError(f"it is truncated or damaged after {found} images")
    if not found:
        raise UserError("it holds no image")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        if member.size < 0:  # the next member would be one of before, for ever
            raise UserError("it is damaged: a member has a negative size")
        yield member
        tar.members = []  # type: ignore[attr-defined]  # millions need not be remembered


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse():
        raise UserError("it is a link, a device or another kind of member that is not followed")
    if member.size > MAX_BYTES:
        raise UserError(f"it is larger than {MAX_BYTES >> 30} GB")
    file = tar.extractfile(member)
    assert file is not None  # it is a regular member
    try:
        return file.read()
    except tarfile.TarError as error:
        raise UserError(f"it is truncated ({error})") from error
