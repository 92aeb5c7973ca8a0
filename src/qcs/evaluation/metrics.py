"""Scores of a classifier, and its calibration; `qcs.evaluation.intervals` has their intervals.

N images, K classes; rows of a confusion matrix are true classes, columns predictions.
"""

import torch
from torch import Tensor

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Precision, recall, F1 and support of each class.

    Args:
        confusion: (..., K, K) counts.

    Returns:
        "precision", "recall", "f1", each (..., K) float64 in [0, 1], 0 where undefined, and
        "support" (..., K) int64.
    """
    c = confusion.double()
    hits, true, predicted = c.diagonal(dim1=-2, dim2=-1), c.sum(-1), c.sum(-2)
    return {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / true.clamp(min=1),
        "f1": 2 * hits / (true + predicted).clamp(min=1),
        "support": confusion.sum(-1).long(),
    }


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """Top-1 accuracy "acc", mean class accuracy "mean_acc" and macro-F1 "f1".

    The latter two are means over the classes of which there are faces; a class without a face has
    no influence.

    Args:
        confusion: (..., K, K) counts.

    Returns:
        (...) in [0, 1], float64.

    Examples:
        >>> import torch
        >>> from qcs.evaluation.metrics import scores
        >>> confusion = torch.tensor([[8, 2], [1, 3]])  # ten faces of one class, four of the other
        >>> {name: round(value.item(), 3) for name, value in scores(confusion).items()}
        {'acc': 0.786, 'mean_acc': 0.775, 'f1': 0.754}
    """
    by_class = class_scores(confusion)
    present = by_class["support"] > 0
    classes = present.sum(-1).clamp(min=1)
    hits = confusion.diagonal(dim1=-2, dim2=-1).sum(-1).double()
    return {
        "acc": hits / confusion.sum((-2, -1)).clamp(min=1),
        "mean_acc": (by_class["recall"] * present).sum(-1) / classes,
        "f1": (by_class["f1"] * present).sum(-1) / classes,
    }


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count (true, predicted) pairs of (N,) class indices: (K, K) int64."""
    pairs = labels * num_classes + predictions
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def check_finite(values: Tensor, manifest: Manifest, what: str = "answers") -> None:
    """Check that the numbers a network computed are finite, before they are used or reported.

    Args:
        values: (N, ...), a row for each image.
        manifest: the N images.
        what: what the numbers are, for the message.

    Raises:
        UserError: some are not finite; the message counts their images and names the first.
    """
    wrong = ~values.flatten(1).isfinite().all(1)
    if wrong.any():
        first = manifest.paths[int(wrong.int().argmax())]
        raise UserError(
            f"the network's {what} are not finite for {int(wrong.sum())} of {len(values)} images "
            f"of {manifest.root}, the first is {first}: nothing is reported of them; its weights "
            "are damaged, its training diverged, or its arithmetic overflowed (form=eager is exact)"
        )


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Tensor]:
    """Compare confidence, the largest probability, with accuracy, in bins of equal width.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,) class indices.
        bins: between 0 and 1.

    Returns:
        "ece" (), the expected calibration error: the mean of |accuracy - confidence| over bins,
        weighted by their images; "count" (bins,) int64; "confidence" and "accuracy", (bins,)
        means, nan in an empty bin.
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    where = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(where, minlength=bins)
    total = {"confidence": confidence, "accuracy": correct}
    total = {k: torch.bincount(where, weights=v, minlength=bins) for k, v in total.items()}
    gap = (total["accuracy"] - total["confidence"]).abs().sum() / len(labels)
    return {"ece": gap, "count": count, **{k: v / count for k, v in total.items()}}
