"""A data set as a CSV of the columns `path,label,split`, which a manifest is read from.

A path is absolute, or relative to `root`, by default the CSV's folder. A label is a class name, and
a split is one of train, val, test. A path or a label that a spreadsheet would take for a formula is
written as `./=name.png` or `'=name`, and read as `=name.png` or `=name`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.containers import ZipImages
from qcs.data.folders import SPLITS, expanded, readable, same_name, split_of
from qcs.data.tables import Row, present, read_csv, slashes, unique

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins so
Cells = tuple[int, str, str, str]  # line, path, label, split


def read(
    path: str | Path | None, root: str | Path | None, class_names: Sequence[str]
) -> tuple[Path, list[Row], list[str]]:
    """Read a CSV; return the root, the rows and the class names, see `Manifest.from_csv`."""
    if path is None:
        raise UserError("dataset.path is not set: a CSV of path,label,split")
    path = expanded(path)
    with readable(path):
        if not path.is_file():
            raise UserError(f"no manifest at {path}: expected a CSV of path,label,split")
    lines, table = read_csv(path, ("path", "label", "split"))
    labels = map(_label, table["label"])
    cells = list(zip(lines, table["path"], labels, table["split"], strict=True))
    if not cells:
        raise UserError(f"{path} has a header and no rows; add a line for each image")
    names = [str(name).strip() for name in class_names] or _names(path, cells)
    rows = unique(_rows(path, cells, names), path)
    root = expanded(root) if root else path.parent
    with readable(root):
        if root.is_dir():
            present(root, rows, path)
        elif not root.is_file():
            raise UserError(f"nothing at dataset.root={root}: a folder, a .zip or a .csv of pixels")
        elif root.suffix.lower() == ".zip":
            _present_in_zip(root, rows, path)
    return root, rows, names


def write(path: Path, paths: Sequence[str], labels: Sequence[str], splits: Sequence[str]) -> None:
    """Write what `read` reads.

    Raises:
        UserError: a name cannot be written as UTF-8.
    """
    names = ("'" * label.startswith(FORMULA) + label for label in labels)
    files = ("./" * file.startswith(FORMULA) + file for file in paths)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("path", "label", "split"))
    writer.writerows(zip(files, names, splits, strict=True))
    try:
        content = text.getvalue().encode()
    except UnicodeEncodeError as error:
        near = terminal(error.object[max(error.start - 40, 0) : error.end + 20])
        raise UserError(
            f"{path} is not written: a file's name is not UTF-8 (near {near}); rename the file"
        ) from error
    path.write_bytes(content)


def _label(cell: str) -> str:
    cell = cell.strip()
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _names(path: Path, cells: Sequence[Cells]) -> list[str]:
    """The labels that occur, sorted.

    Raises:
        UserError: one is spelt in two ways; names the line of each.
    """
    spelt: dict[str, tuple[str, int]] = {}
    for line, _, label, _ in cells:
        other, before = spelt.setdefault(same_name(label), (label, line))
        if other != label:
            raise UserError(
                f"{path} line {line} has the label {label!r} and line {before} {other!r}, which "
                "differ by capitals or blanks only; write them alike, or set dataset.class_names"
            )
    return sorted(label for label, _ in spelt.values())


def _rows(path: Path, cells: Sequence[Cells], names: Sequence[str]) -> list[Row]:
    """Rows with label indices.

    Raises:
        UserError: an empty cell, or an unknown label or split; names the line.
    """
    index = {same_name(name): i for i, name in enumerate(names)}
    known = {label: index.get(same_name(label)) for label in {cell[2] for cell in cells}}
    splits = {name: split_of(name) for name in {cell[3] for cell in cells}}
    rows = []
    for line, file, label, split in cells:
        number, part = known[label], splits[split]
        if not file or not label or part is None or number is None:
            raise UserError(
                f"{path} line {line} has the path {file!r}, the label {label!r} and the split "
                f"{split!r}, expected a path, a label of {', '.join(filter(None, names))} and a "
                f"split of {', '.join(SPLITS)}; correct or remove the line"
            )
        rows.append(Row(slashes(file), number, part, line))
    return rows


def _present_in_zip(root: Path, rows: Sequence[Row], table: Path) -> None:
    members = set(ZipImages(root).names())
    missing = [row for row in rows if row.path not in members]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} images are not in {root}: the first is "
            f"{missing[0].path} ({table} line {missing[0].line})"
        )
