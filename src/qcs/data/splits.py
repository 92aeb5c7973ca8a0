"""Which images are trained on: those held out for validation, and a smaller training set.

Both choose class by class and by a seed, and move or leave out rows of the training split alone.
"""

from dataclasses import replace

import numpy as np

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest


def hold_out(
    manifest: Manifest, fraction: float, seed: int, key: str = "loader.val_fraction"
) -> Manifest:
    """Move a random share of each class's training images to val.

    A class with two images or more gives one at least. `key` is the configuration key that an
    error names.

    Raises:
        UserError: a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"{key} must be above 0 and below 1, got {fraction}")
    rng, splits = np.random.default_rng(seed), manifest.splits.astype("<U5")
    for label in range(len(manifest.class_names)):
        rows = np.flatnonzero((manifest.labels == label) & (manifest.splits == "train"))
        number = max(round(fraction * len(rows)), 1) if len(rows) > 1 else 0
        splits[rng.permutation(rows)[:number]] = "val"
    return replace(manifest, splits=splits)


def keep_training(manifest: Manifest, number: int, seed: int) -> Manifest:
    """Keep a number of training images, stratified by class, and all images of other splits.

    Each class keeps one image, where the number allows it, and its share of the others
    (Webster's rounding). The images of a smaller number are among those of a larger one.

    Raises:
        UserError: there are fewer training images, or the number is below 1.
    """
    train = np.flatnonzero(manifest.splits == "train")
    if not 1 <= number <= len(train):
        raise UserError(
            f"loader.train_images={number} must be from 1 to the {len(train)} training images "
            f"of data set {manifest.root}, or null for all of them"
        )
    rng, rank = np.random.default_rng(seed), np.zeros(len(manifest))
    for label in range(len(manifest.class_names)):
        rows = rng.permutation(train[manifest.labels[train] == label])
        rank[rows[1:]] = (np.arange(1, len(rows)) + 0.5) / len(rows)
    first = np.lexsort((manifest.labels[train], rank[train]))[:number]
    kept = manifest.splits != "train"
    kept[train[first]] = True
    return manifest.select(kept)
