import pytest
import torch

from qcs.config.errors import UserError
from qcs.models.cross_similarity import CrossSimilarityBlock, cross_similarity

SAME, OTHER = (1, 0, 3, 2), (2, 3, 0, 1)


def _reference(q, mode, gain, per_sample):
    """DESIGN.md section 1, step 2 to 5, in plain loops over roles and tokens."""
    batch, roles, n, _ = q.shape

    def distances(i, j):
        d = torch.zeros(batch, n, n, dtype=q.dtype)
        for b in range(batch):
            for s in range(n):
                for t in range(n):
                    d[b, s, t] = ((q[b, i, s] - q[b, j, t]) ** 2).sum().sqrt()
        return d

    def agg(m):
        out = torch.zeros(batch, n, dtype=q.dtype)
        for b in range(batch):
            for s in range(n):
                out[b] += m[b, s] / (m[b, s] ** 2).sum().sqrt()
        return out

    def extreme(d, kind):
        if per_sample:
            return torch.stack([getattr(x, kind)() for x in d]).view(-1, 1, 1)
        return getattr(d, kind)()

    maps = []
    for role in range(roles):
        score = 0
        if mode != "distance":
            d = distances(SAME[role], role)
            score = score + agg(extreme(d, "max") - d)
        if mode != "similarity" and roles == 4:
            d = distances(OTHER[role], role)
            score = score + gain * agg(d - extreme(d, "min"))
        maps.append(score.softmax(-1))
    return torch.stack(maps, dim=1)


@pytest.mark.parametrize(
    "roles,mode", [(4, "both"), (4, "similarity"), (4, "distance"), (2, "both")]
)
@pytest.mark.parametrize("extremes", ["batch", "sample"])
def test_matches_plain_loops(roles, mode, extremes):
    q = torch.randn(3, roles, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = cross_similarity(q, mode, 1.3, extremes)
    expected = _reference(q, mode, 1.3, extremes == "sample")
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "order,symmetric",
    [
        ((1, 0, 3, 2), True),
        ((2, 3, 0, 1), True),
        ((3, 2, 1, 0), True),
        ((1, 0, 2, 3), False),  # anchor and positive alone
        ((0, 1, 3, 2), False),
        ((2, 1, 0, 3), False),
        ((1, 2, 3, 0), False),
    ],
)
def test_the_circle_of_four_is_symmetric_under_these_alone(order, symmetric):
    q = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    same = torch.allclose(cross_similarity(q)[:, order], cross_similarity(q[:, order]), atol=1e-12)
    assert same == symmetric


def test_per_sample_extremes_do_not_see_the_batch_mates():
    q = torch.randn(4, 4, 6, 8, dtype=torch.float64)
    alone = cross_similarity(q[:1], extremes="sample")
    torch.testing.assert_close(cross_similarity(q, extremes="sample")[:1], alone)
    assert not torch.allclose(cross_similarity(q)[:1], cross_similarity(q[:1]))


def test_distances_keep_full_precision_under_autocast():
    q = (torch.randn(2, 4, 6, 8) * 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = cross_similarity(q)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, cross_similarity(q.float()))


def test_identical_faces_have_finite_gradients():
    """A class with one image is its own positive: every distance of a token to itself is 0."""
    q = torch.randn(1, 1, 40, 8).repeat(2, 4, 1, 1).requires_grad_()
    (cross_similarity(q) * torch.rand(40)).sum().backward()
    assert q.grad.isfinite().all()


def test_theta_exists_only_where_something_reaches_it():
    has = {
        (r, m): hasattr(CrossSimilarityBlock(8, r, m), "theta")
        for r, m in [(4, "both"), (4, "similarity"), (4, "distance"), (4, "dot"), (2, "both")]
    }
    assert [k for k, v in has.items() if v] == [(4, "both")]


def test_distance_needs_another_class():
    with pytest.raises(UserError, match="model.roles=4"):
        CrossSimilarityBlock(8, 2, "distance")
