"""Sharpness-aware minimisation as a place to stand, not as an optimiser.

Source: Foret et al., "Sharpness-Aware Minimization", ICLR 2021, arXiv 2010.01412, algorithm 1;
the adaptive form is Kwon et al., "ASAM", ICML 2021, arXiv 2102.11600. The usual class that
wraps an optimiser loses its state on saving and needs a closure that mixed precision does not
pass. Here the plain torch optimiser stays as it is, and the second gradient is taken
inside `with perturbed(...)`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def gradient_norm(params: Iterable[Parameter], adaptive: bool = False) -> Tensor:
    """Euclidean norm () of all gradients, each times |w| when `adaptive`."""
    grads = [p.grad * p.abs() if adaptive else p.grad for p in params if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


@contextmanager
def perturbed(
    params: Iterable[Parameter], rho: float = 0.05, adaptive: bool = False
) -> Iterator[Tensor]:
    """Climb to `w + rho * g / ||g||` for the length of the block, then stand at w again, exactly.

    The gradients are scaled in place: they are spent, and the next ones are zeroed first anyway.
    The step does not depend on the scale of the gradients, so those that a GradScaler has
    multiplied need no unscaling first. Parameters without a gradient stay where they are.

    Args:
        params: parameters that hold the gradient at w.
        rho: radius of the neighbourhood.
        adaptive: scale the step by w squared and the norm by |w| (ASAM).

    Yields:
        The gradient norm () used.
    """
    moved = [p for p in params if p.grad is not None]
    norm = gradient_norm(moved, adaptive)
    with torch.no_grad():
        origin, step = [p.data for p in moved], [p.grad for p in moved]
        torch._foreach_mul_(step, rho / (norm + 1e-12))
        if adaptive:
            torch._foreach_mul_(step, torch._foreach_mul(origin, origin))
        for p, there in zip(moved, torch._foreach_add(origin, step), strict=True):
            p.data = there  # w itself is put aside, not copied
    try:
        yield norm
    finally:
        for p, data in zip(moved, origin, strict=True):
            p.data = data


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch, and put its running statistics back at the end.

    They move inside: a unit that gradient checkpointing runs again has to store as many tensors as
    the first time, which it does not with `track_running_stats` switched off in between.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    buffers = [b for norm in norms for b in norm.buffers()]
    kept = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
