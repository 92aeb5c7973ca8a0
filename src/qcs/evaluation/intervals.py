"""Intervals of scores, by Wilson's formula and by the bootstrap, and a paired test of classifiers.

N images, K classes; rows of a confusion matrix are true classes, columns predictions.
"""

from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from qcs.config.errors import UserError
from qcs.evaluation.metrics import scores

LEVEL = 0.95  # of every interval


def wilson(hits: Tensor, trials: Tensor) -> Tensor:
    """Wilson's score interval of a share, which is right for 0 of 16 and for 16 of 16 as well.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.

    Args:
        hits: (...) counts.
        trials: (...) counts.

    Returns:
        (..., 2) float64, low and high; nan without a trial.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    hits, trials = hits.double(), trials.double()
    centre = (hits + z**2 / 2) / (trials + z**2)
    half = z * (hits * (trials - hits) / trials + z**2 / 4).sqrt() / (trials + z**2)
    return torch.stack([(centre - half).clamp(min=0), (centre + half).clamp(max=1)], dim=-1)


def class_intervals(confusion: Tensor) -> dict[str, Tensor]:
    """Wilson's intervals of `class_scores`.

    Recall is a share of a class's images and precision one of its predictions. F1 rises with the
    share J of hits among the images that are of the class or predicted as it, F1 = 2 J / (1 + J),
    so its interval is that of J, carried over.

    Args:
        confusion: (K, K) counts.

    Returns:
        Low and high of "precision", "recall" and "f1", (K, 2) float64, nan for a class without a
        face; also of precision for a class that was never predicted.
    """
    hits, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    share = wilson(hits, true + predicted - hits)
    found = {
        "precision": wilson(hits, predicted),
        "recall": wilson(hits, true),
        "f1": 2 * share / (1 + share),
    }
    return {k: v.masked_fill((true == 0)[:, None], torch.nan) for k, v in found.items()}


def bootstrap(confusion: Tensor, resamples: int = 2000, seed: int = 0) -> dict[str, Tensor]:
    """Bootstrap the overall scores: percentile intervals over resampled images.

    Every score is a function of the confusion matrix. The matrix of N images that are drawn with
    replacement is one draw of a multinomial distribution over the cells, so it is drawn directly.
    Where all resamples have the same value (all images are right, or all are wrong), a bootstrap
    gives no interval: top-1, a share of images, then has Wilson's, a mean over classes has none.

    Args:
        confusion: (K, K) counts.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        Low and high of each of `scores`, (2,) float64; nan where there is no interval.

    Raises:
        UserError: less than one resample.
    """
    check_resamples(resamples)
    images = confusion.sum()
    share = confusion.flatten().double() / images
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(int(images), share.numpy(), size=resamples)
    drawn = scores(torch.from_numpy(counts).view(resamples, *confusion.shape))
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    found = {k: v.quantile(edges, dim=0) for k, v in drawn.items()}
    found = {k: v if v[0] < v[1] else torch.full_like(v, torch.nan) for k, v in found.items()}
    if found["acc"].isnan().any():
        found["acc"] = wilson(confusion.trace(), images)
    return found


def paired(
    first: Tensor, second: Tensor, resamples: int = 2000, flips: int = 10_000, seed: int = 0
) -> dict[str, float | list[float]]:
    """Compare the top-1 of two groups of networks on the same N images.

    For each image, d is the difference of the shares of networks that are right. The mean of d
    gets a bootstrap interval over images. The test flips the signs of d at random, since both signs
    would be equally likely if the groups were equally good; for two single networks this is
    McNemar's test. Neither the interval nor the test covers the variation over other seeds.

    Args:
        first: (S, N) bool, whether each of S networks is right on each image.
        second: (T, N) bool, the same for T other networks.
        resamples: of the interval.
        flips: random flips of the test.
        seed: of the interval and of the test.

    Returns:
        "difference", second less first; "interval", low and high; "p", two-sided.

    Raises:
        UserError: there is less than one resample.

    Examples:
        >>> import torch
        >>> from qcs.evaluation.intervals import paired
        >>> first = torch.tensor([[True, True, False, False]])
        >>> second = torch.tensor([[True, True, True, False]])
        >>> paired(first, second)["difference"]
        0.25
    """
    check_resamples(resamples)
    rng, images, unit = np.random.default_rng(seed), first.shape[1], len(first) * len(second)
    # The differences d are kept as whole numbers in units of 1 / (S T), so that equal ones are
    # exactly equal. Only a few values occur, so images with the same value are drawn together.
    gaps = (second.sum(0) * len(first) - first.sum(0) * len(second)).numpy()
    values, counts = np.unique(gaps, return_counts=True)
    means = rng.multinomial(images, counts / images, size=resamples) @ values / images / unit
    sizes, counts = np.unique(np.abs(gaps[gaps != 0]), return_counts=True)
    sums = (2 * rng.binomial(counts, 0.5, size=(flips, len(counts))) - counts) @ sizes
    as_far = int((np.abs(sums) >= abs(gaps.sum())).sum())
    edges = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "difference": float(gaps.sum() / images / unit),
        "interval": edges.tolist(),
        "p": (1 + as_far) / (1 + flips),  # the observed signs count as one of the flips
    }


def check_resamples(resamples: int) -> None:
    """Check the number of resamples of a bootstrap.

    Raises:
        UserError: it is below 1.
    """
    if resamples < 1:
        raise UserError(f"resamples must be 1 or more, got {resamples}")
