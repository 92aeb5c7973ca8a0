"""Sharing the work of a prediction among processes that know nothing of each other."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from qcs.config.errors import UserError
from qcs.inference.inputs import Source


class Shard(NamedTuple):
    """One of several equal shares of the files."""

    number: int  # from 1
    of: int

    @property
    def name(self) -> str:
        """For file names, as 03-of-16."""
        return f"{self.number:0{len(str(self.of))}d}-of-{self.of}"

    def share(self, files: Sequence[Source]) -> list[Source]:
        """Every `of`-th file of the shuffled list: the shares are disjoint and complete.

        Photos, films and tars are dealt out in turn each for themselves, so that each shard gets
        its part of those that take long. They are shuffled by a checksum of their names, so that
        no shard gets all the large ones where a large and a small photo take turns.
        """

        def order(file: Source) -> tuple[str, int, str]:
            return file.kind, crc32(file.file.encode("utf-8", "surrogatepass")), file.file

        dealt = sorted(files, key=order)[self.number - 1 :: self.of]
        return sorted(dealt, key=lambda file: (file.kind, file.file))


def parse(text: str | None) -> Shard | None:
    """Read shard=3/16, from 1/16 to 16/16; "auto" asks torchrun and SLURM.

    Raises:
        UserError: it is neither, or neither torchrun nor a SLURM array started this process.
    """
    if text is None:
        return None
    if text == "auto":
        return _auto()
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"shard={text} is not a shard: write shard=1/16 to shard=16/16, or auto")
    return Shard(int(found[1]), int(found[2]))


def _auto() -> Shard:
    """The place of this process among the tasks of a SLURM array and the ranks of torchrun."""
    array = _numbers("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    ranks = _numbers("RANK", "WORLD_SIZE")
    if not (array or ranks):
        raise UserError(
            "shard=auto finds neither RANK and WORLD_SIZE of torchrun nor SLURM_ARRAY_TASK_ID and "
            "SLURM_ARRAY_TASK_COUNT of a SLURM array: write shard=1/16 to shard=16/16"
        )
    task, tasks = array or (0, 1)
    if array:
        first, step = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}") or default)
            for name, default in (("MIN", "0"), ("STEP", "1"))
        )
        task, rest = divmod(task - first, step)
        if rest or not 0 <= task < tasks:
            raise UserError(
                "shard=auto needs an array without holes, as --array=1-16: write shard=1/16 to "
                "shard=16/16 for others"
            )
    rank, size = ranks or (0, 1)
    return Shard(task * size + rank + 1, tasks * size)


def _numbers(place: str, total: str) -> tuple[int, int] | None:
    """Two numbers of the environment, or None where one of them is missing."""
    texts = [os.environ.get(name, "") for name in (place, total)]
    if not all(text.isascii() and text.isdecimal() for text in texts):
        return None
    return int(texts[0]), int(texts[1])
