"""Held out images, and smaller training sets."""

import random
from pathlib import Path

import pytest

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest
from qcs.data.splits import hold_out, keep_training


def test_held_out_images_are_a_seeded_share_of_each_class(faces):
    held = hold_out(faces.split("train"), 0.25, seed=1)
    assert held.split("val").counts().tolist() == [3, 3, 3]
    again = hold_out(faces.split("train"), 0.25, seed=1)
    assert held.splits.tolist() == again.splits.tolist()
    with pytest.raises(UserError, match="val_fraction"):
        hold_out(faces, 1.5, 0)


@pytest.mark.parametrize("number", [1, 3, 7, 12, 24, 33])
def test_a_number_of_training_images_is_stratified_and_seeded(number):
    counts = (3, 6, 24)
    rows = [(f"{k}-{i}.png", k, "train") for k, n in enumerate(counts) for i in range(n)]
    rows += [(f"{i}.png", 0, "test") for i in range(5)]
    random.Random(0).shuffle(rows)
    manifest = Manifest.build(Path("faces"), rows, ("a", "b", "c"))
    kept = keep_training(manifest, number, seed=1)
    train, smaller = kept.split("train"), keep_training(manifest, max(number - 1, 1), seed=1)
    assert len(train) == number and len(kept.split("test")) == 5
    for got, count in zip(train.counts(), counts, strict=True):
        assert (abs(got - count * number / 33) <= 1 and got) or number < 4
    assert set(smaller.paths.tolist()) <= set(kept.paths.tolist())
    # In the order of the data set; another seed takes other images, but as many of each class.
    assert kept.paths.tolist() == [p for p in manifest.paths.tolist() if p in set(kept.paths)]
    other = keep_training(manifest, number, seed=2).split("train")
    assert other.counts().tolist() == train.counts().tolist()
    assert set(other.paths) != set(train.paths) or number == 33
