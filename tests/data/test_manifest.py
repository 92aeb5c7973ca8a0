"""A manifest's own checks and its fingerprint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcs.data.manifest import Manifest


def table(root: Path = Path("a")) -> Manifest:
    rows = [("x.png", 0, "train"), ("y.png", 1, "train"), ("z.png", 1, "test")]
    return Manifest.build(root, rows, ("sad", "glad"))


def test_a_fingerprint_is_of_the_rows_and_not_of_where_they_lie():
    assert table(Path("a")).fingerprint() == table(Path("b")).fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        {"paths": np.array(["x.png", "y.png", "w.png"])},
        {"paths": np.array(["y.png", "x.png", "z.png"])},
        {"labels": np.array([1, 0, 1])},
        {"splits": np.array(["train", "val", "test"])},
        {"class_names": ("glad", "sad")},
        {"boxes": np.ones((3, 4), np.int64)},
        {"targets": np.eye(3, 2, dtype=np.float32)},
    ],
)
def test_whatever_else_differs_gives_another_fingerprint(changed):
    assert replace(table(), **changed).fingerprint() != table().fingerprint()


def test_names_that_are_not_utf8_have_a_fingerprint():
    odd = replace(table(), paths=np.array(["x\udcff.png", "y.png", "z.png"]))
    assert odd.fingerprint() != table().fingerprint()
