"""Reading the label tables that come with data sets: every fault names its file and line.

Tables may begin with a byte order mark, end lines with CR LF, and write paths with backslashes.
"""

import csv
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from qcs.config.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which takes longer than reading a long table itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: no such file.
        UserError: it is empty or not UTF-8; names the line.
    """
    if not path.is_file():
        raise UserError(f"no table at {path}; check dataset.path")
    data = path.read_bytes()
    if not data.strip():
        raise UserError(f"{path} is empty; copy it again from its owner's release")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the table as UTF-8") from error


def read_csv(
    path: Path, columns: Sequence[str], text: str | None = None
) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Read columns of a CSV with a header; blanks around header names are dropped.

    Args:
        path: the file; for messages alone where `text` is given.
        columns: names that must be there.
        text: the content, where it lies in an archive.

    Returns:
        Line numbers, and every column by its name; blank lines are left out.

    Raises:
        UserError: as `read_text`; a missing column; a row with more or fewer
            cells than the header.
    """
    reader = csv.reader((read_text(path) if text is None else text).splitlines())
    try:
        header, *table = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not a line of a CSV ({error}); repair it"
        ) from error
    header = [name.strip() for name in header[1]]
    if missing := [name for name in columns if name not in header]:
        raise UserError(
            f"{path} line 1 lacks the column {missing[0]!r}: it has {','.join(header)} and "
            f"{','.join(columns)} are needed; add it to the header"
        )
    lines, rows, width = [], [], len(header)
    for line, row in table:
        if len(row) == width:
            lines.append(line)
            rows.append(row)
        elif row:
            raise UserError(
                f"{path} line {line} has {len(row)} cells and the header {width}; "
                "repair or remove the line"
            )
    columns_read = zip(*rows, strict=True) if rows else [()] * width
    return lines, dict(zip(header, columns_read, strict=True))


def read_pairs(path: Path) -> tuple[list[int], list[str], list[str]]:
    """Read lines of `name label`; a name may hold blanks and backslashes.

    Returns:
        Line numbers, names with forward slashes, and labels as they are written.

    Raises:
        UserError: as `read_text`; a line without a label.
    """
    lines, names, labels = [], [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name:
            raise UserError(
                f"{path} line {number} is {line.strip()!r}, expected a name, a blank and a label"
            )
        lines.append(number)
        names.append(slashes(name.strip()))
        labels.append(label)
    return lines, names, labels


def slashes(path: str) -> str:
    """A relative path with forward slashes, without a leading `./`."""
    return path.replace("\\", "/").removeprefix("./")


def as_index(text: str, base: int, number: int, where: str) -> int:
    """Turn a written label that starts at `base` into an index from 0.

    Raises:
        UserError: not one of the `number` labels; `where` is the file and line.
    """
    try:
        index = int(text) - base
    except ValueError:
        index = -1
    if not 0 <= index < number:
        raise UserError(
            f"{where} has the label {text!r}, expected a whole number from {base} to "
            f"{base + number - 1}; correct or remove the line"
        )
    return index


class Row(NamedTuple):
    """An image in a table; `line` is where, for messages."""

    path: str
    label: int
    split: str
    line: int


def unique(rows: Sequence[Row], table: Path) -> list[Row]:
    """Drop repeated rows of a table, and say how many.

    Raises:
        UserError: an image is listed twice with different labels or splits.
    """
    if len({row.path for row in rows}) == len(rows):
        return list(rows)
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        if (other.label, other.split) != (row.label, row.split):
            raise UserError(
                f"{table} line {row.line} lists {row.path} with another label or split than "
                f"line {other.line}; remove one of the two"
            )
    log.warning("dropped %d repeated rows of %s", len(rows) - len(first), table)
    return list(first.values())


def present(root: Path, rows: Sequence[Row], table: Path) -> None:
    """Check that a table's images are below a folder, with one listing a directory.

    Raises:
        UserError: some are missing; names the first and its line.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for row in rows:
        folder, _, name = row.path.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(os.path.join(root, folder)))
            except (FileNotFoundError, NotADirectoryError):
                listed[folder] = set()
        if name not in listed[folder]:
            missing.append(row)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} images are not below {root}: the first is "
            f"{missing[0].path} ({table} line {missing[0].line}); "
            "copy them there or remove their lines"
        )
