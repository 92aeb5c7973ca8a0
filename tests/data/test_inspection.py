"""What `python -m qcs.check` finds."""

import numpy as np
import pytest

from qcs.data.inspection import inspect
from qcs.data.manifest import Manifest


def copy(manifest: Manifest, source: int, target: int) -> None:
    data = (manifest.root / manifest.paths[source]).read_bytes()
    (manifest.root / manifest.paths[target]).write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_images_across_splits_and_labels_are_found(workers, faces):
    # rows: 36 train (12 a class), 9 val, 9 test
    copy(faces, 0, 45)  # train and test, same label
    copy(faces, 1, 2)  # within train
    copy(faces, 36, 53)  # val and test, other labels
    (faces.root / faces.paths[5]).write_bytes(b"no")
    found = inspect(faces, num_workers=workers, progress=False)
    assert sorted(map(sorted, found.groups)) == [[0, 45], [1, 2], [36, 53]]
    assert sorted(map(sorted, found.across)) == [[0, 45], [36, 53]]
    assert found.contradicting == [[36, 53]]
    assert found.leaked() == [0, 36]
    assert list(found.unreadable) == [5] and "cannot read image" in found.unreadable[5]
    assert found.sizes == {(20, 20): 53}
    assert found.counts.tolist() == [[12] * 3, [3] * 3, [3] * 3]
    assert len(found.problems()) == 3


def test_a_class_without_a_pair_is_named(faces):
    few = faces.select(np.flatnonzero((faces.labels != 1) | (np.arange(len(faces)) == 12)))
    found = inspect(few, num_workers=0, progress=False)
    assert found.small_classes == ["green"]
    assert found.problems() == ["fewer than two training images: green; add some or drop the class"]


def test_a_clean_data_set_has_no_problems(faces):
    assert inspect(faces, num_workers=0, progress=False).problems() == []
