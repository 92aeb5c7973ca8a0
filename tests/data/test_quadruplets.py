from collections import Counter

import numpy as np
import pytest

from qcs.config.errors import UserError
from qcs.data.quadruplets import AnchorSampler, QuadrupletDraw, draw_generator

LABELS = np.array([0] * 6 + [1] * 3 + [2] * 11)[np.random.default_rng(0).permutation(20)]


def draws(draw: QuadrupletDraw, anchor: int, number: int) -> list[list[int]]:
    return [draw(anchor, draw_generator(0, 0, i)) for i in range(number)]


@pytest.mark.parametrize("negatives", ["by_sample", "by_class"])
def test_a_group_is_two_of_one_class_and_two_of_another(negatives):
    draw = QuadrupletDraw(LABELS, 4, negatives)
    for anchor in range(20):
        for rows in draws(draw, anchor, 20):
            a, p, n, n2 = LABELS[rows]
            assert rows[0] == anchor and a == p and n == n2 and a != n
            assert len(set(rows)) == 4


@pytest.mark.parametrize("roles", [1, 2])
def test_smaller_groups_are_its_beginning(roles):
    groups = draws(QuadrupletDraw(LABELS, roles), 3, 9)
    assert all(len(rows) == roles and rows[0] == 3 for rows in groups)


def test_positives_are_uniform_over_the_class():
    anchor = int(np.flatnonzero(LABELS == 0)[0])
    counts = Counter(rows[1] for rows in draws(QuadrupletDraw(LABELS, 2), anchor, 5000))
    assert set(counts) == set(np.flatnonzero(LABELS == 0).tolist()) - {anchor}
    assert min(counts.values()) > 850  # 1,000 each


@pytest.mark.parametrize("negatives,share", [("by_sample", 3 / 14), ("by_class", 1 / 2)])
def test_negatives_are_uniform_over_images_or_over_classes(negatives, share):
    anchor = int(np.flatnonzero(LABELS == 0)[0])
    groups = draws(QuadrupletDraw(LABELS, 4, negatives), anchor, 4000)
    ones = [rows[2] for rows in groups if LABELS[rows[2]] == 1]
    assert len(ones) / 4000 == pytest.approx(share, abs=0.03)
    assert set(ones) == set(np.flatnonzero(LABELS == 1).tolist())


def test_a_draw_depends_on_seed_epoch_and_index_alone():
    draw = QuadrupletDraw(LABELS, 4)
    assert draw(3, draw_generator(1, 2, 3)) == draw(3, draw_generator(1, 2, 3))
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({draw_generator(*key).random() for key in keys}) == 4


def test_a_class_of_one_image_is_its_own_positive_and_said_once(caplog):
    draw = QuadrupletDraw(np.array([0, 0, 1, 2]), 4, class_names=["A", "B", "C"])
    assert draw(2, draw_generator(0, 0, 0))[:2] == [2, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "classes with one training image pair it with itself: ['B', 'C']"
    ]


def test_one_class_alone_has_no_negatives():
    with pytest.raises(UserError, match="two classes"):
        QuadrupletDraw(np.zeros(5, dtype=int), 4)


def test_shuffled_anchors_visit_each_image_once_and_anew_each_epoch():
    sampler = AnchorSampler(LABELS, seed=1)
    first = list(sampler)
    assert sorted(a.row for a in first) == list(range(20))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert [a.row for a in sampler] != [a.row for a in first]
    assert {a.epoch for a in sampler} == {1}


def test_balanced_anchors_are_uniform_over_classes():
    sampler = AnchorSampler(LABELS, "balanced", 6000)
    counts = np.bincount(LABELS[[a.row for a in sampler]])
    assert len(list(sampler)) == len(sampler) == 6000
    np.testing.assert_allclose(counts / 6000, 1 / 3, atol=0.03)


def test_more_shuffled_anchors_than_images_are_refused():
    with pytest.raises(UserError, match="loader.samples_per_epoch=21"):
        AnchorSampler(LABELS, samples_per_epoch=21)
