"""An image folder with lists, text files of `name label`, the format of the authors' code.

Source: the data files of the published QCS code (train and test lists beside an image folder).
"""

from collections.abc import Sequence
from pathlib import Path

from qcs.config.bounds import Natural
from qcs.config.errors import UserError
from qcs.data.folders import expanded, require_path
from qcs.data.manifest import Manifest
from qcs.data.tables import Row, as_index, present, read_pairs

HINT = "a folder of images, with lists of `name label` in it or at dataset.train, dataset.test"


def read(
    path: str | None = None,
    train: str = "train.txt",
    test: str = "test.txt",
    val: str | None = None,
    class_names: Sequence[str] = (),
    label_base: Natural = 0,
) -> Manifest:
    """Read images listed in text files.

    Args:
        path: folder that the names are relative to.
        train, test, val: the lists; a relative path is looked for in `path` first, and then in the
            current folder.
        class_names: the name of each label, in the order of the labels.
        label_base: the first label: 0, or 1 where they are counted from one.

    Raises:
        UserError: no path given, nothing there, or a list or images are missing.
        UserError: no class names, or a line that is wrong; names it.
    """
    root = require_path(path, "the image folder", HINT)
    if len(class_names) < 2:
        raise UserError(
            "dataset.class_names is not set: lists hold numbers, so name them in their order, "
            "dataset.class_names=[Surprise,Fear,...]"
        )
    rows: list[Row] = []
    for split, name in {"train": train, "val": val, "test": test}.items():
        if name is not None:
            rows += _listed(root, split, name, class_names, label_base)
    return Manifest.build(root, rows, class_names)


def _listed(
    root: Path, split: str, name: str, class_names: Sequence[str], label_base: int
) -> list[Row]:
    """The rows of one list."""
    table = root / name if (root / name).is_file() else expanded(name)
    if not table.is_file():
        raise UserError(f"no list dataset.{split}={name} in {root}, nor at that path")
    rows = []
    for line, image, label in zip(*read_pairs(table), strict=True):
        index = as_index(label, label_base, len(class_names), f"{table} line {line}")
        rows.append(Row(image, index, split, line))
    return present(root, rows, table)
