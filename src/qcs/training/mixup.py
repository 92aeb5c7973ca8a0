"""Callbacks that mix each group of a batch with another one.

Sources: Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899. There
single images are mixed; here whole groups are, role by role and with one share, so that what is of
one class before is of one mixture of classes afterwards.

B batch, R roles, K classes, H and W pixels.
"""

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

from qcs.config.bounds import Positive
from qcs.config.errors import UserError
from qcs.training.module import Batch, QCSModule


class Mixup(Callback):
    """Mixes images (B, R, 3, H, W) and targets (B, R, K) of every training batch.

    The labels stay those of the group that has the larger share, for the accuracy in training.

    Args:
        alpha: of the Beta distribution of the shares; the larger, the more even are they.
    """

    def __init__(self, alpha: Positive = 0.2) -> None:
        self.alpha = alpha

    def on_train_batch_start(  # type: ignore[override] # it is our module
        self, trainer: Trainer, pl_module: QCSModule, batch: Batch, batch_idx: int
    ) -> None:
        """Mix the batch, with random numbers that a resumed run draws again.

        Raises:
            UserError: an image is in several groups, which cannot be mixed apart.
        """
        if "groups" in batch:
            name = type(self).__name__.lower()
            raise UserError(f"callbacks.{name} needs loader.groups_per_image=1")
        seed = pl_module.seed, trainer.current_epoch, batch_idx, trainer.global_rank
        rng = np.random.default_rng(seed)
        share = rng.beta(self.alpha, self.alpha)
        share = max(share, 1 - share)
        others = torch.from_numpy(rng.permutation(len(batch["labels"]))).to(pl_module.device)
        targets = soft_targets(batch, len(pl_module.class_names))
        batch["images"], share = self.mix(batch["images"], others, share, rng)
        batch["targets"] = targets * share + targets[others] * (1 - share)

    def mix(
        self, images: Tensor, others: Tensor, share: float, rng: np.random.Generator
    ) -> tuple[Tensor, float]:
        """The images (B, R, 3, H, W) mixed with those of the other groups (B,), and their share."""
        return images * share + images[others] * (1 - share), share


class CutMix(Mixup):
    """Pastes a box of another group's images into those of each group, and mixes the targets.

    The box has the images' proportions and may reach over their edge; what lies inside decides
    about the targets. It never covers more than half, so that the labels stay those of the group.

    Args:
        alpha: of the Beta distribution of the shares; 1 draws all sizes of a box alike.
    """

    def __init__(self, alpha: Positive = 1.0) -> None:
        super().__init__(alpha)

    def mix(
        self, images: Tensor, others: Tensor, share: float, rng: np.random.Generator
    ) -> tuple[Tensor, float]:
        """The images (B, R, 3, H, W) with a box of the others (B,), and the share that is left."""
        size = np.array(images.shape[-2:])
        half, centre = size * (1 - share) ** 0.5 / 2, rng.uniform(0, size)
        (top, left), (bottom, right) = (
            np.clip(np.rint(corner), 0, size).astype(int).tolist()
            for corner in (centre - half, centre + half)
        )
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[others, ..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / size.prod().item()


def soft_targets(batch: Batch, classes: int) -> Tensor:
    """The targets (B, R, K) of a batch; those of a data set without any are its labels."""
    if "targets" in batch:
        return batch["targets"]
    return F.one_hot(batch["labels"], classes).float()
