"""Sharpness-aware minimisation (SAM) as a context in which the weights are perturbed.

Source: Foret et al., "Sharpness-Aware Minimization", ICLR 2021, arXiv 2010.01412, algorithm 1;
the adaptive form is Kwon et al., "ASAM", ICML 2021, arXiv 2102.11600. SAM is usually written as a
class that wraps an optimiser. Such a class loses its state when a checkpoint is saved, and it needs
a closure, which Lightning does not pass with mixed precision. Here any optimiser of torch is used
as it is, and the second gradient is taken inside `with perturbed(...)`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import TypedDict

from qcs.config.bounds import Count, Weight


class SAMOptions(TypedDict, total=False):
    """The options of sharpness-aware minimisation; `rho` 0 switches it off."""

    rho: Weight  # the radius of the neighbourhood
    every: Count  # SAM is used in one of so many steps; the others take the gradient as it is
    adaptive: bool  # scale the perturbation by the weights (ASAM)
    update_bn_twice: bool  # the second pass updates BatchNorm's running statistics as well
    sync_first: bool  # perturb by the gradient of all processes, not by that of each alone


@torch.no_grad()
def gradient_norm(params: Iterable[Parameter], adaptive: bool = False) -> Tensor:
    """Compute the Euclidean norm () of all gradients, each times |w| when `adaptive`."""
    grads = [p.grad * p.abs() if adaptive else p.grad for p in params if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


@contextmanager
def perturbed(
    params: Iterable[Parameter], rho: float = 0.05, adaptive: bool = False
) -> Iterator[Tensor]:
    """Replace the weights w by `w + rho * g / ||g||` inside the block, and restore them after it.

    The gradients are scaled in place: after the block they are no longer the gradients at w. The
    perturbation does not depend on the scale of the gradients, so gradients that a GradScaler has
    multiplied need not be unscaled. Parameters without a gradient are left as they are.

    Args:
        params: the parameters, which hold the gradient at w.
        rho: radius of the neighbourhood.
        adaptive: scale the perturbation by w squared and the norm by |w| (ASAM).

    Yields:
        The norm () of the gradient.
    """
    with_gradient = [(p, p.grad) for p in params if p.grad is not None]
    perturbed_params = [p for p, _ in with_gradient]
    norm = gradient_norm(perturbed_params, adaptive)
    with torch.no_grad():
        weights, step = [p.data for p in perturbed_params], [grad for _, grad in with_gradient]
        torch._foreach_mul_(step, rho / (norm + 1e-12))
        if adaptive:
            torch._foreach_mul_(step, torch._foreach_mul(weights, weights))
        for p, data in zip(perturbed_params, torch._foreach_add(weights, step), strict=True):
            p.data = data  # the tensor of w is kept and not copied, so it is restored exactly
    try:
        yield norm
    finally:
        for p, data in zip(perturbed_params, weights, strict=True):
            p.data = data


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Restore BatchNorm's running statistics at the end of the block.

    They are updated inside the block, as usual. Switching `track_running_stats` off instead would
    not do: a unit that gradient checkpointing runs again would store fewer tensors than at the
    first time, which torch refuses.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    buffers = [b for norm in norms for b in norm.buffers()]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
