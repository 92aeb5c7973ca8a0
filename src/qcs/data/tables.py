"""Reading the label tables that come with data sets; every error names its file and line.

Tables may begin with a byte order mark, end lines with CR LF, and write paths with backslashes.
"""

import codecs
import csv
import gc
import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from qcs.config.errors import UserError
from qcs.data.folders import readable, same_name

log = logging.getLogger(__name__)


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which would take longer than reading a long table does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_text(path: Path) -> str:
    """Read a text file, see `as_text`.

    Raises:
        UserError: there is no such file, it may not be read, or `as_text` refuses it.
    """
    with readable(path):
        if not path.is_file():
            raise UserError(f"no table at {path}; check dataset.path")
        return as_text(path.read_bytes(), path)


def as_text(data: bytes, path: Path) -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: it is empty or neither of them; names the line.
    """
    if not data.strip():
        raise UserError(f"{path} is empty; copy it again from its owner's release")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the table as UTF-8") from error


def read_csv(
    path: Path, columns: Sequence[str], text: str | None = None
) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Read a CSV with a header, whose cells are separated by commas, semicolons or tabs.

    Args:
        path: the file; where `text` is given, it is used for messages alone.
        columns: names of the columns that must be there, in capitals or not.
        text: the content, where it was read before.

    Returns:
        Line numbers, and every column by its name; blank lines are left out.

    Raises:
        UserError: `read_text` refuses the file, a column is missing or there twice, or a row has
            more or fewer cells than the header.
    """
    text = read_text(path) if text is None else text
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        (_, names), *table = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not a line of a CSV ({error}); repair it"
        ) from error
    header = _header(path, names, columns)
    rows, width = [], len(header)
    for line, row in table:
        if len(row) != width:
            raise UserError(
                f"{path} line {line} has {len(row)} cells and the header {width}; "
                "repair or remove the line"
            )
        rows.append(row)
    columns_read = zip(*rows, strict=True) if rows else [()] * width
    return [line for line, _ in table], dict(zip(header, columns_read, strict=True))


def _header(path: Path, written: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The names of all columns; those in `columns` are spelt as they are there."""
    spelt = {same_name(name): name for name in columns}
    header = [spelt.get(same_name(name), name.strip()) for name in written]
    for name in columns:
        if header.count(name) != 1:
            raise UserError(
                f"{path} line 1 {'has twice' if name in header else 'lacks'} the column {name!r}: "
                f"it has {','.join(header)[:200]} and {','.join(columns)} are needed; correct the "
                "header"
            )
    return header


def read_pairs(path: Path) -> tuple[list[int], list[str], list[str]]:
    """Read lines of `name label`; a name may hold blanks and backslashes.

    Returns:
        Line numbers, names with forward slashes, and labels as they are written.

    Raises:
        UserError: `read_text` refuses the file, or a line has no label.
    """
    lines, names, labels = [], [], []
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1):
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
    """Turn a label as it is written, a number from `base` on, into an index from 0.

    Raises:
        UserError: it is not one of the `number` labels; `where`, the file and line, is named.
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
    """An image in a table, and the line on which it stands, for messages."""

    path: str
    label: int
    split: str
    line: int


def unique(rows: Sequence[Row], table: Path) -> list[Row]:
    """Drop the repeated rows of a table, and warn of how many there are.

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


def present(root: Path, rows: Sequence[Row], table: Path) -> list[Row]:
    """Return the rows of a table as `unique` does, whose images are all below a folder.

    Raises:
        UserError: as for `unique`, or some are missing; names the first and its line.
    """
    listed: dict[str, set[str]] = {}  # of each directory that is named
    missing, rows = [], unique(rows, table)
    for row in rows:
        folder, _, name = row.path.rpartition("/")
        if folder not in listed:
            listed[folder] = _names(os.path.join(root, folder + "/" * row.path.startswith("/")))
        if name not in listed[folder]:
            missing.append(row)
    if not missing:
        return rows
    row = missing[0]
    folder, _, name = row.path.rpartition("/")
    alike = [other for other in listed[folder] if same_name(other) == same_name(name)]
    raise UserError(
        f"{len(missing)} of {len(rows)} images are not below {root}: the first is "
        f"{row.path} ({table} line {row.line})"
        + (f", where {alike[0]!r} differs by capitals or blanks only" if alike else "")
        + "; copy them there or correct or remove their lines"
    )


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return set()
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
