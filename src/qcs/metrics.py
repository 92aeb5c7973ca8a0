"""Scores of a classifier, all derived from one confusion matrix.

K classes; rows of a confusion matrix are true classes, columns predictions.
"""

import torch
from torch import Tensor


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Precision, recall, F1 and support of each class.

    Args:
        confusion: (K, K) counts.

    Returns:
        "precision", "recall", "f1", each (K,) float64 in [0, 1], 0 where undefined, and
        "support" (K,) int64.
    """
    c = confusion.double()
    hits, true, predicted = c.diagonal(), c.sum(1), c.sum(0)
    return {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / true.clamp(min=1),
        "f1": 2 * hits / (true + predicted).clamp(min=1),
        "support": confusion.sum(1).long(),
    }


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """Top-1 accuracy "acc", mean class accuracy "mean_acc" and macro-F1 "f1".

    The latter two are means over the classes that the data holds, so a class without a face
    counts neither for nor against.

    Args:
        confusion: (K, K) counts.

    Returns:
        Scalars () in [0, 1], float64.
    """
    by_class = class_scores(confusion)
    present = by_class["support"] > 0
    return {
        "acc": confusion.diagonal().sum().double() / confusion.sum().clamp(min=1),
        "mean_acc": by_class["recall"][present].mean(),
        "f1": by_class["f1"][present].mean(),
    }


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count (true, predicted) pairs of (N,) class indices: (K, K) int64."""
    pairs = labels * num_classes + predictions
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
