"""The images on which checkpoints are evaluated, in the classes of each checkpoint."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qcs.checkpoints.datasets import dataset_config, read_manifest
from qcs.checkpoints.load import Checkpoint
from qcs.checkpoints.registry import Trust
from qcs.config.errors import UserError
from qcs.data.classes import ClassMatch, canonical, match_classes
from qcs.data.manifest import Manifest

log = logging.getLogger(__name__)


class EvaluationData:
    """One split of a data set for one checkpoint after the other.

    The data set is read once for all checkpoints whose images are of one size. Where the user names
    no data set, it is the one that the first checkpoint was trained on.

    Args:
        dataset: what the user configured: a whole data set, or no more than its path.
        split: "train", "val" or "test".
        store: the folder of prepared images, see `qcs.checkpoints.datasets.read_manifest`.
        trust: import paths of the user's own code that may read a data set.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any] | None,
        split: str,
        store: str | None = "auto",
        trust: Trust = None,
    ) -> None:
        self.dataset, self.split, self.store, self.trust = dataset, split, store, trust
        self._by_size: dict[int | None, Manifest] = {}
        self._first: ClassMatch | None = None

    def for_checkpoint(self, checkpoint: Checkpoint) -> ClassMatch:
        """Return the images in the classes of a checkpoint.

        Raises:
            UserError: the data set cannot be read, or the checkpoint does not see the same images
                of the same classes as the first one.
        """
        transform = checkpoint.recipe["transform"]
        self.dataset = dataset_config(checkpoint.recipe, self.dataset)
        size = transform.get("resize") or transform.get("size")  # the user's own may have neither
        if size not in self._by_size:
            whole = read_manifest(self.dataset, [transform], self.store, self.trust)
            self._by_size[size] = whole.split(self.split)
        found = match_classes(self._by_size[size], checkpoint.class_names)
        if self._first is None:
            self._first = found
        require_same_images(self._first, found)
        return found


def require_same_images(first: ClassMatch, other: ClassMatch) -> None:
    """Check that two checkpoints see the same images of the same classes.

    Raises:
        UserError: they do not, so that their scores cannot be compared.
    """
    names, other_names = first.data.class_names, other.data.class_names
    if sorted(map(canonical, names)) != sorted(map(canonical, other_names)):
        raise UserError(
            f"compare: the checkpoints know different classes, {', '.join(names)} and "
            f"{', '.join(other_names)}; evaluate them one by one"
        )
    if first.data.paths.tolist() != other.data.paths.tolist():
        raise UserError(
            "compare: of one size some images could not be prepared: write store=null to decode all"
        )


def warn_of_class_differences(found: ClassMatch, restrict: bool) -> None:
    """Log which classes only the data set or only the checkpoint has."""
    for name, number in found.left_out.items():
        log.warning("left out %d images of %s, which the checkpoint does not know", number, name)
    if found.lacking:
        allowed = "predicting it is a mistake (restrict=true rules it out)"
        effect = "never predicted (restrict=true)" if restrict else allowed
        log.warning("the data set has no %s: %s", " and no ".join(found.lacking), effect)


def rule_out_lacking(logits: Tensor, found: ClassMatch) -> Tensor:
    """Set the logits (N, K) of the classes that the data set does not have to minus infinity."""
    out = [k for k, name in enumerate(found.data.class_names) if name in found.lacking]
    logits = logits.clone()
    logits[:, out] = -torch.inf
    return logits
