"""What a backbone gives for an input size, found by asking it, and what of it is not needed.

A backbone answers like timm's `features_only`: a list of NCHW maps and `feature_info`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qcs.config.errors import UserError


def map_sizes(backbone: nn.Module, size: int) -> list[tuple[int, int]]:
    """(height, width) of each map for images of `size` pixels; parts behind the last map go.

    Asked with one black image: paddings differ between families.

    Raises:
        UserError: it does not take that size, its maps are not NCHW, or it has parts that its
            maps do not use and that cannot be left out.
    """
    training = backbone.training
    try:
        with torch.enable_grad():  # wherever it is built: `_prune` follows the gradient
            maps = backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"the backbone does not take model.input_size={size} pixels: {error}"
        ) from error
    channels = list(backbone.feature_info.channels())
    if [m.shape[1] if m.ndim == 4 else None for m in maps] != channels:
        raise UserError(
            f"the backbone's maps are {[tuple(m.shape) for m in maps]}, expected (batch, "
            f"channel, height, width) with {channels} channels; choose another backbone"
        )
    _prune(backbone, maps, size)
    backbone.train(training)
    return [tuple(m.shape[2:]) for m in maps]


def _prune(backbone: nn.Module, maps: Sequence[Tensor], size: int) -> None:
    """Drop what lies behind the last map (timm keeps a stage more in some families)."""
    params = dict(backbone.named_parameters())
    with torch.enable_grad():
        total = sum(m.sum() for m in maps)
    grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    unused = {k for k, g in zip(params, grads, strict=True) if g is None}
    for name, _ in list(backbone.named_modules()):
        inside = {k for k in unused if k.startswith(f"{name}.")}
        if inside and inside == {k for k in params if k.startswith(f"{name}.")}:
            backbone.set_submodule(name, nn.Identity())
            unused -= inside
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, size, size))
    except (IndexError, RuntimeError, TypeError):
        unused |= set(params)
    if unused:
        raise UserError(
            "the backbone has parameters that its maps do not use and that cannot be left "
            "out; choose backbone.out_indices that include its last map"
        )
