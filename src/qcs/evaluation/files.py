"""Writing the numbers of a report, so that other programs and people can read them."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qcs.config.errors import UserError
from qcs.config.escape import spreadsheet


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; the folder is made if missing.

    Raises:
        UserError: it cannot be written (a full disk, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A byte of a file name that is not UTF-8 is written as an escape.
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read as well.

    Raises:
        ValueError: a number that is not finite, which JSON does not have.
        UserError: as `write_text`.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, in which no cell is a formula for a spreadsheet.

    Raises:
        UserError: as `write_text`.
    """
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerows([spreadsheet(cell) for cell in row] for row in (header, *rows))
    write_text(path, lines.getvalue())
