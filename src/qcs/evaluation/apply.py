"""Apply a network, or another function of images, to a whole data set in batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from qcs.config.errors import UserError
from qcs.data import workers
from qcs.data.datasets import Faces, Transform
from qcs.data.manifest import Manifest
from qcs.evaluation.metrics import check_finite


@workers.translated_errors()
@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor],
    data: Manifest,
    transform: Transform,
    device: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    flip: bool = False,
) -> Tensor:
    """Apply a function to all images of a data set, in their order.

    Args:
        function: images (B, 3, H, W) to (B, ...).
        data: the images.
        transform: of the checkpoint.
        device: where the function computes.
        batch_size: images of a batch.
        num_workers: loader processes.
        flip: average over an image and its mirror image, both in one batch. For logits this means
            the geometric mean of the two answers, so that neither confidence outweighs the other.

    Returns:
        (N, ...) float32, on the CPU, finite.

    Raises:
        UserError: a result is not finite, or `batch_size` or `num_workers` is out of range.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, got {value}")
    options = workers.loader_options(num_workers, timeout=0, seed=0)
    loader = workers.Loader(Faces(data, transform), batch_size=batch_size, **options)
    found = []
    for batch in loader:
        images = batch["images"].to(device)
        if flip:
            both = function(torch.cat([images, images.flip(-1)])).float()
            found.append(both.unflatten(0, (2, -1)).mean(0).cpu())
        else:
            found.append(function(images).float().cpu())
    values = torch.cat(found)
    check_finite(values, data)
    return values
