"""The attention of a network in training, drawn for one group of images that stays the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qcs import plots
from qcs.config.escape import terminal
from qcs.data.datasets import Faces, Transform
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.faces import fixed_group
from qcs.evaluation.metrics import check_finite
from qcs.models import QCSNetwork

ROLE_NAMES = ("anchor", "positive", "negative", "negative 2")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode inside the block, then restore the mode of every module."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def draw_attention(
    path: Path,
    network: QCSNetwork,
    manifest: Manifest,
    transform: Transform,
    seed: int,
    heading: str = "",
) -> bool:
    """Draw one group of images with its cross similarity attention at each level.

    Args:
        network: in any mode, which is kept.
        manifest: the images; the group is drawn from them with `seed`.
        transform: an image to the input of the network.

    Returns:
        Whether a picture was drawn: False for a network without cross similarity attention.
    """
    if network.cross is None:
        return False
    rows = fixed_group(manifest.labels, network.roles, seed)
    names = [terminal(name) for name in manifest.class_names]
    faces, first = Faces(manifest, transform), next(network.parameters())
    images = torch.stack([faces[row]["images"] for row in rows])
    with evaluating(network):
        out = network.compare(images[None].to(first.device, first.dtype))
    if out.attention is None:  # dot-product attention weighs no tokens
        return False
    logits, attention = out.base_logits[0].float().cpu(), out.attention[0].float().cpu()
    check_finite(torch.cat([logits, attention.flatten(1)], dim=1), manifest.select(np.array(rows)))
    shares, predicted = logits.softmax(-1).max(-1)
    titles = [
        f"{role}: {names[manifest.labels[row]]}\nseen as {names[p]} {100 * q:.0f} %"
        for role, row, p, q in zip(ROLE_NAMES, rows, predicted, shares, strict=False)
    ]
    pixels = unnormalised(images, transform)
    plots.attention_sheet(pixels, attention, titles, path, heading)
    return True
