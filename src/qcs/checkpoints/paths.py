"""The checkpoints that a user names: one file, a list of files or patterns, or named groups."""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError

MAX_NAME = 200  # bytes; file systems take 255


def checkpoint_groups(ckpt: str | None, compare: Mapping | Sequence | None) -> dict[str, list[str]]:
    """Return the files by the name of their group; a pattern stands for the files that match it.

    Args:
        ckpt: one file; the name of its group is "".
        compare: several files instead. In a list each file is a group, whose name is the part of
            its path that differs from the others; a mapping gives the names of the groups. Every
            name can be the name of a folder.

    Raises:
        UserError: no checkpoint given, or both ways at once, a pattern that no file fits, one file
            twice in a group, or a name that no folder can have.
    """
    if (ckpt is None) == (compare is None):
        raise UserError(
            "ckpt is not set: write ckpt=runs/.../checkpoints/best.ckpt, or a name of `qcs zoo`"
            if ckpt is None
            else "write ckpt=... for one checkpoint or compare=... for several, not both"
        )
    if ckpt is not None:
        return {"": [ckpt]}
    if isinstance(compare, Mapping):
        found = {_folder_name(name): _files(group, name) for name, group in compare.items()}
    else:
        files = _files(compare, "")
        found = {name: [file] for name, file in zip(_differences(files), files, strict=True)}
    if not found:
        raise UserError(f"compare={compare} names no checkpoint: write compare=[a.ckpt,b.ckpt]")
    return found


def only_checkpoint(ckpt: str | None, compare: Mapping | Sequence | None, option: str) -> str:
    """Return the file where an option of a command, as "figure=pairs", takes one checkpoint only.

    Raises:
        UserError: `compare` is given, or no checkpoint.
    """
    if compare is not None:
        raise UserError(
            f"{option} takes one checkpoint: write ckpt=... in the place of compare=..."
        )
    return checkpoint_groups(ckpt, None)[""][0]


def _files(patterns: Any, group: Any) -> list[str]:
    """The files of a group, each once."""
    where = f"compare.{group}" if group != "" else "compare"
    patterns = patterns if isinstance(patterns, list | tuple) else [patterns]
    if wrong := [p for p in patterns if not isinstance(p, str) or not p]:
        raise UserError(f"{where} holds {wrong[0]!r}, expected the path of a checkpoint")
    files = [file for pattern in patterns for file in _matches(pattern, where)]
    if not files:
        raise UserError(f"{where} names no checkpoint: write compare=[a.ckpt,b.ckpt]")
    file, times = Counter(map(os.path.abspath, files)).most_common(1)[0]
    if times > 1:
        raise UserError(f"{where} names {file} {times} times: name each checkpoint once")
    return files


def _matches(pattern: str, where: str) -> list[str]:
    path = os.path.expanduser(pattern)
    if os.path.exists(path) or not glob.has_magic(path):  # a name may hold brackets
        return [path]
    files = sorted(glob.glob(path, recursive=True))
    if not files:
        raise UserError(f"no checkpoint fits {where}={pattern}")
    return files


def _folder_name(name: Any) -> str:
    text = str(name)
    if text.strip(" .") == "" or set(text) & set("/\\\0") or len(os.fsencode(text)) > MAX_NAME:
        raise UserError(
            f"compare names a group {text!r}: a report goes into a folder of that name, so write a "
            "short one without slashes"
        )
    return text


def _differences(files: list[str]) -> list[str]:
    """The parts of each path that differ from the others: what all share at both ends is cut."""
    parts = [Path(os.path.abspath(file)).parts for file in files]
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[:-1] for p in parts]
    names = ["-".join(p) for p in parts]
    usable = len(set(names)) == len(names) and all(len(os.fsencode(n)) <= MAX_NAME for n in names)
    return names if usable else [f"checkpoint-{number}" for number in range(1, len(files) + 1)]
