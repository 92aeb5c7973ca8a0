"""Further groups from the images of a batch: valid, and new where that is possible."""

import numpy as np
import pytest

from qcs.data.quadruplets import QuadrupletDraw, draw_generator
from qcs.data.regrouping import in_batch_groups

LABELS = np.array([0] * 6 + [1] * 3 + [2] * 11)[np.random.default_rng(0).permutation(20)]


@pytest.mark.parametrize("roles", [2, 4])
@pytest.mark.parametrize("size", [1, 2, 9, 32])
def test_in_batch_groups_are_valid_groups_and_used_alike(roles, size):
    draw = QuadrupletDraw(LABELS, roles)
    for seed in range(10):
        anchors = np.random.default_rng(seed).integers(20, size=size)
        rows = np.array([draw(a, draw_generator(seed, 0, i)) for i, a in enumerate(anchors)])
        groups = in_batch_groups(LABELS[rows], rows, 3)
        assert groups[:size].ravel().tolist() == list(range(size * roles))
        assert np.bincount(groups.ravel()).tolist() == [3] * (size * roles)
        found = rows.ravel()[groups]
        label = LABELS[found]
        for i in range(0, roles, 2):
            assert (label[:, i] == label[:, i + 1]).all()
            assert (found[:, i] != found[:, i + 1]).all()
        assert roles == 2 or (label[:, 0] != label[:, 2]).all()


def test_in_batch_groups_meet_new_partners_where_there_are_any():
    """Anchors of classes 0 0 1 1, negatives of 2 2 0 2: all may change their partners."""
    labels = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 0, 0], [1, 1, 2, 2]])
    rows = np.arange(16).reshape(4, 4)
    first, again = np.split(in_batch_groups(labels, rows, 2), 2)
    assert (again[:, 1] == first[[1, 0, 3, 2], 1]).all()
    assert (again[:, 2] != first[:, 2]).all()
    only = in_batch_groups(np.array([[0, 0, 1, 1], [1, 1, 0, 0]]), rows[:2], 2)
    assert (only[2:] == only[:2]).all()  # no other pair of negatives fits, nor has any a partner
