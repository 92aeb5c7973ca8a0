"""Lists that name the images to read: a text file with a path on each line, or a column of a table.

A list names files of this machine only; a relative path starts from the folder of the list.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qcs.config.errors import UserError, missing_extra, reason
from qcs.data.folders import readable
from qcs.data.images import open_file
from qcs.data.tables import as_text, read_csv

SUFFIXES = (".txt", ".csv", ".parquet")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Entry(NamedTuple):
    """A line of a list: the path of a file, or why there is none."""

    path: str  # as it is written in the list
    error: str | None = None


def is_list(path: Path) -> bool:
    """Whether a path is that of a list; a folder of Parquet parts is one."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES and (path.is_file() or (suffix == ".parquet" and path.is_dir()))


def entries(path: Path, column: str) -> list[Entry]:
    """The paths that a list holds, in its order.

    Args:
        column: of paths, in a CSV or Parquet.

    Raises:
        UserError: the list is empty or cannot be read, or has no such column of texts.
    """
    kind = path.suffix.lower()
    with readable(path):
        read = {".txt": _lines, ".csv": _csv, ".parquet": _parquet}[kind]
        found = [_entry(path, *row) for row in read(path, column)]
    if not found:
        raise UserError(f"{path} names no files: write a path on each line")
    return found


def _entry(path: Path, where: str, text: str | None) -> Entry:
    if not text:
        return Entry(f"{path} {where}", f"{path} {where} has no path")
    if URL.match(text):
        return Entry(
            text,
            f"{path} {where} names {text}: a list holds files of this machine only, so download "
            "it and write its path",
        )
    return Entry(text)


def _lines(path: Path, _: str) -> Iterator[tuple[str, str]]:
    """The lines of a text, without blank ones; a name may hold bytes that are not UTF-8."""
    with open_file(path) as file:
        data = file.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        text = as_text(data, path)
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", line.removesuffix("\r")


def _csv(path: Path, column: str) -> Iterator[tuple[str, str]]:
    lines, table = read_csv(path, (column,))
    for number, cell in zip(lines, table[column], strict=True):
        yield f"line {number}", cell


def _parquet(path: Path, column: str) -> Iterator[tuple[str, str | None]]:
    """A column of a file, or of all files below a folder; none is read that is hidden."""
    files = [path]
    if path.is_dir():
        files = [
            file for file in sorted(path.rglob("*.parquet"))
            if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        ]  # fmt: skip
    for part in files:
        row = 0
        for cells in _column(part, column):
            for cell in cells:
                row += 1
                yield f"row {row}" if part == path else f"{part.name} row {row}", cell


def _column(path: Path, column: str) -> Iterator[list[str | None]]:
    """The cells of one file's column, some thousands at once."""
    pa = arrow()
    try:
        with open_file(path) as file, pa.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if names.count(column) != 1:
                raise UserError(
                    f"{path} has no column {column!r}, it has {', '.join(names)[:200]}: name the "
                    "column of paths with path_column="
                )
            for batch in table.iter_batches(columns=[column]):
                cells = batch.column(0).to_pylist()
                if any(not isinstance(cell, str | None) for cell in cells):
                    raise UserError(
                        f"the column {column!r} of {path} holds no texts: name the column of "
                        "paths with path_column="
                    )
                yield cells
    except pa.ArrowException as error:
        why = reason(error).strip().partition("\n")[0][:200]
        raise UserError(f"{path} is not a whole Parquet file ({why})") from error


def arrow() -> Any:
    """Import pyarrow, with pyarrow.parquet as its attribute.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("archive", "Parquet needs") from error
    return pyarrow
