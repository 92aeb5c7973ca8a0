"""Which faces of a data set the figures show."""

import logging

import numpy as np

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)


def faces_by_class(data: Manifest, seed: int, number: int) -> np.ndarray:
    """Draw rows at random, up to `number` of each class that has any, in the order of the classes.

    Raises:
        UserError: `number` is below 1.
    """
    if number < 1:
        raise UserError(f"faces_per_class must be 1 or more, got {number}")
    return np.concatenate([rows[:number] for rows in _by_class(data, seed)])


def pairs_by_class(data: Manifest, seed: int) -> np.ndarray:
    """Draw rows at random: a face of each class that has any, then another one of each class."""
    by_class = _by_class(data, seed)
    for rows in by_class:
        if len(rows) == 1:
            name = data.class_names[data.labels[rows[0]]]
            log.warning("%s has one face: on the diagonal it is compared with itself", name)
    return np.array([np.resize(rows, 2) for rows in by_class]).T.ravel()


def _by_class(data: Manifest, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(data.labels == c)) for c in np.unique(data.labels)]


def fixed_group(labels: np.ndarray, roles: int, seed: int) -> list[int]:
    """Draw the rows of one group, [a, p] or [a, p, n, n2].

    A class with one image is repeated, and so is the only class of a data set with one class.
    """
    rng = np.random.default_rng(seed)
    classes = np.resize(rng.permutation(np.unique(labels)), roles // 2)
    pairs = [np.resize(rng.permutation(np.flatnonzero(labels == c)), 2) for c in classes]
    return np.concatenate(pairs).tolist()
