"""Write the numbers of a report into files that people and other programs can read."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError
from qcs.config.escape import spreadsheet


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8; the folder is made if missing.

    Raises:
        UserError: it cannot be written, because the disk is full or permission is missing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A byte of a file name that is not UTF-8 is written as an escape.
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented so that people can read it.

    Raises:
        ValueError: a number is not finite, for which JSON has no notation.
        UserError: as for `write_text`.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table in which a spreadsheet takes no cell for a formula.

    Raises:
        UserError: as for `write_text`.
    """
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerows([spreadsheet(cell) for cell in row] for row in (header, *rows))
    write_text(path, lines.getvalue())
