"""The maps of a backbone for an input size, found by running it, and the parts it does not need.

A backbone answers like timm's `features_only`: its output is a list of maps (B, C, H, W), and its
attribute `feature_info` describes them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qcs.config.errors import UserError


def map_channels(backbone: nn.Module) -> list[int]:
    """Return the number of channels of each map."""
    info: Any = backbone.feature_info  # torch declares every attribute as a tensor or a module
    return list(info.channels())


def map_sizes(backbone: nn.Module, size: int) -> list[tuple[int, int]]:
    """Return (height, width) of each map for images of `size` pixels a side.

    The sizes are found by running the backbone on one black image, because families of networks
    pad differently. Modules that lie behind the last map are replaced by `nn.Identity`.

    Raises:
        UserError: the backbone does not take that size, its maps do not have four axes with the
            channels second, or it has parts that its maps do not use and that cannot be removed.
    """
    training = backbone.training
    try:
        with torch.enable_grad():  # also where the caller has switched gradients off: see `_prune`
            maps = backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"the backbone does not take model.input_size={size} pixels: {error}"
        ) from error
    channels = map_channels(backbone)
    if [m.shape[1] if m.ndim == 4 else None for m in maps] != channels:
        raise UserError(
            f"the backbone's maps are {[tuple(m.shape) for m in maps]}, expected (batch, "
            f"channel, height, width) with {channels} channels; choose another backbone"
        )
    _prune(backbone, maps, size)
    backbone.train(training)
    return [tuple(m.shape[2:]) for m in maps]


def _prune(backbone: nn.Module, maps: Sequence[Tensor], size: int) -> None:
    """Remove what lies behind the last map: timm keeps one stage too many in some families.

    A parameter that gets no gradient from the maps is not used by them.
    """
    params = dict(backbone.named_parameters())
    with torch.enable_grad():
        total = torch.stack([m.sum() for m in maps]).sum()
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
