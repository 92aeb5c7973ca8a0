import torch

from qcs.evaluation.intervals import bootstrap, class_intervals, wilson
from qcs.evaluation.metrics import class_scores


def test_wilsons_interval_is_the_published_one():
    """0 and 16 of 16, and Newcombe's (1998) example of 81 of 263."""
    got = wilson(torch.tensor([0, 16, 81, 0]), torch.tensor([16, 16, 263, 0]))
    torch.testing.assert_close(
        got[:3],
        torch.tensor([[0.0, 0.1936], [0.8064, 1.0], [0.2553, 0.3662]], dtype=torch.float64),
        atol=6e-5,
        rtol=0,
    )
    assert got[3].isnan().all()


def test_every_class_has_an_honest_interval():
    matrix = torch.tensor([[0, 16, 0], [0, 20, 0], [0, 0, 0]])
    found, values = class_intervals(matrix), class_scores(matrix)
    for key in ("precision", "recall", "f1"):
        assert found[key][2].isnan().all()  # no face
        low, high = found[key][:2].T
        seen = ~low.isnan()
        assert (low <= values[key][:2])[seen].all() and (values[key][:2] <= high)[seen].all()
        assert (high - low)[seen].min() > 0.1
    assert found["precision"][0].isnan().all()  # never predicted
    assert found["recall"][0, 1] > 0.19 and found["f1"][0, 1] > 0.3


def test_a_bootstrap_without_spread_gives_no_interval_to_means():
    found = bootstrap(torch.diag(torch.tensor([9, 7])), 50)
    torch.testing.assert_close(found["acc"], wilson(torch.tensor(16), torch.tensor(16)))
    assert found["mean_acc"].isnan().all() and found["f1"].isnan().all()
