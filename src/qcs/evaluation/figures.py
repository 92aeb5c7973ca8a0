"""Which faces figures show, and the attention of a network in training on a fixed group."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qcs import plots
from qcs.config.errors import UserError
from qcs.config.escape import terminal
from qcs.data.datasets import Faces, Transform
from qcs.data.manifest import Manifest
from qcs.data.transforms import unnormalised
from qcs.evaluation.metrics import check_finite
from qcs.models import QCSNetwork

log = logging.getLogger(__name__)

ROLE_NAMES = ("anchor", "positive", "negative", "negative 2")


def faces_by_class(data: Manifest, seed: int, number: int) -> np.ndarray:
    """Draw rows, up to `number` of each class that has any, in the order of the classes.

    Raises:
        UserError: less than one face of each class.
    """
    if number < 1:
        raise UserError(f"faces_per_class must be 1 or more, got {number}")
    return np.concatenate([rows[:number] for rows in _by_class(data, seed)])


def pairs_by_class(data: Manifest, seed: int) -> np.ndarray:
    """Draw rows: a face of each class that has any, then another one of each."""
    by_class = _by_class(data, seed)
    for rows in by_class:
        if len(rows) == 1:
            name = data.class_names[data.labels[rows[0]]]
            log.warning("%s has one face: on the diagonal it is compared with itself", name)
    return np.array([np.resize(rows, 2) for rows in by_class]).T.ravel()


def _by_class(data: Manifest, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(data.labels == c)) for c in np.unique(data.labels)]


def fixed_group(labels: np.ndarray, roles: int, seed: int) -> list[int]:
    """Draw the rows of one group [a, p] or [a, p, n, n2]; what is rare repeats itself."""
    rng = np.random.default_rng(seed)
    classes = np.resize(rng.permutation(np.unique(labels)), roles // 2)
    pairs = [np.resize(rng.permutation(np.flatnonzero(labels == c)), 2) for c in classes]
    return np.concatenate(pairs).tolist()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation for the length of the block, then back where it was."""
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
    """Draw one seeded group of a manifest with its attention at each level.

    Returns:
        Whether there is something to draw: the network has cross similarity attention.
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
    check_finite(torch.cat([logits, attention.flatten(1)], dim=1), manifest.select(rows))
    shares, predicted = logits.softmax(-1).max(-1)
    titles = [
        f"{role}: {names[manifest.labels[row]]}\nseen as {names[p]} {100 * q:.0f} %"
        for role, row, p, q in zip(ROLE_NAMES, rows, predicted, shares, strict=False)
    ]
    pixels = unnormalised(images, transform)
    plots.attention_sheet(pixels, attention, titles, path, heading)
    return True
