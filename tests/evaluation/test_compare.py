"""The interval of a difference over seeds and images."""

import numpy as np
import pytest
import torch

from qcs.evaluation.compare import COLUMNS, Member, _student, compare, over_seeds


@pytest.mark.parametrize(
    "freedom,quantile", [(1, 12.706), (2, 4.3027), (4, 2.7764), (10, 2.2281), (3136, 1.9607)]
)
def test_students_quantiles_are_the_published_ones(freedom, quantile):
    assert _student(freedom) == pytest.approx(quantile, rel=2e-4)


def drawn(rng, seeds: int, images: int, spread: float) -> list[torch.Tensor]:
    """Two settings whose networks are right with a probability of the image and of the seed."""
    ease = rng.normal(1, 1, images)
    chances = [ease + rng.normal(0, spread, (seeds, 1)) for _ in range(2)]
    return [torch.from_numpy(chance > rng.normal(size=chance.shape)) for chance in chances]


def test_the_interval_is_that_of_plain_loops():
    """The sums of squares of the two-way table, element by element, and 4.3027 for 2 degrees."""
    first, second = drawn(np.random.default_rng(0), 3, 400, spread=1.5)
    d = (second.int() - first.int()).tolist()
    mean = sum(map(sum, d)) / 1200
    rows = [sum(row) / 400 for row in d]
    columns = [sum(row[i] for row in d) / 3 for i in range(400)]
    of_seeds = sum(400 * (r - mean) ** 2 for r in rows) / 2
    of_images = sum(3 * (c - mean) ** 2 for c in columns) / 399
    rest = sum(
        (d[s][i] - rows[s] - columns[i] + mean) ** 2 for s in range(3) for i in range(400)
    ) / (2 * 399)  # fmt: skip
    assert of_seeds > 20 * rest  # so that the degrees of freedom are nearly those of the seeds
    found = over_seeds(first, second)
    half = 4.3027 * ((of_seeds + of_images - rest) / 1200) ** 0.5
    assert found["difference"] == pytest.approx(mean)
    assert found["by_seed"] == pytest.approx(rows)
    assert found["sd"] == pytest.approx((of_seeds / 400) ** 0.5)
    assert found["interval"] == pytest.approx([mean - half, mean + half], rel=0.05)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_it_holds_the_truth_as_often_as_it_says(seeds, spread):
    """Over new seeds and new images, of two settings that are equally good."""
    rng, held = np.random.default_rng(seeds), 0
    for _ in range(200):
        low, high = over_seeds(*drawn(rng, seeds, 200, spread))["interval"]
        held += low <= 0 <= high
    assert 0.92 <= held / 200 <= 0.99


def test_one_seed_or_no_difference_has_no_interval():
    first, second = drawn(np.random.default_rng(0), 2, 50, spread=0.3)
    assert over_seeds(first[:1], second[:1])["interval"] is None
    assert over_seeds(first, first) == {
        "difference": 0.0, "by_seed": [0.0, 0.0], "sd": 0.0, "interval": None
    }  # fmt: skip


def test_a_seed_that_is_missing_shifts_no_difference():
    """The difference is to the same seeds of the first group, not to the mean of all."""
    right = torch.arange(100) < torch.tensor([[60], [90], [66]])
    found = [
        Member(f"seed {s}", dict.fromkeys(COLUMNS, 0.5) | {"intervals": {"acc": None}}, row)
        for s, row in enumerate(right)
    ]
    groups = {"base": found[1:], "all": found, "one": found[2:], "other": found[:1]}
    for by_name, expected in (
        (True, [0, 0, None]),
        (False, [0.72 - 0.78, 0.66 - 0.78, 0.6 - 0.78]),
    ):
        gaps = [row["against"] for row in compare(groups, 100, by_name)]
        assert gaps[0] is None
        for gap, wanted in zip(gaps[1:], expected, strict=True):
            assert gap == wanted or gap["difference"] == pytest.approx(wanted)
