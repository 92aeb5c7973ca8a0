"""BatchNorm that normalises each role of a batch of groups by itself.

In the authors' four branches every role goes through the backbone alone, so BatchNorm's statistics
are of one role, and its running statistics move once for each, in their order. With this the roles
go through the backbone together and the numbers stay those.

B groups, R roles, C channels, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class RoleBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with statistics per role; the state dict is the same.

    Attributes:
        roles: R; the batch is all images of the first role, then all of the second one, ...
            1 is plain BatchNorm.
    """

    roles = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (R*B, C, H, W)."""
        if not self.training or self.roles == 1:
            return super().forward(x)
        # Kernels move running statistics by momentum 1 from here: to those of the role.
        means = torch.zeros(self.roles, self.num_features, dtype=self.weight.dtype, device=x.device)
        variances = torch.ones_like(means)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            out = _IntoOne.apply(x, self.weight, self.bias, means, variances, self.eps)
        else:
            parts = zip(x.chunk(self.roles), means, variances, strict=True)
            options = {"training": True, "momentum": 1.0, "eps": self.eps}
            scales = (self.weight, self.bias)
            out = torch.cat([F.batch_norm(p, m, v, *scales, **options) for p, m, v in parts])
        self._move(means, variances)
        return out

    @torch.no_grad()
    def _move(self, means: Tensor, variances: Tensor) -> None:
        """Move the running statistics by those of each role (R, C), one role after the other."""
        for running, found in ((self.running_mean, means), (self.running_var, variances)):
            for role in found:
                running.lerp_(role.to(running.dtype), self.momentum)
        self.num_batches_tracked += self.roles


class _IntoOne(torch.autograd.Function):
    """torch's kernel on each role, writing into one tensor: joining them would copy all of it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        means: Tensor,
        variances: Tensor,
        eps: float,
    ) -> Tensor:
        out, saved = torch.empty_like(x), (torch.empty_like(means), torch.empty_like(means))
        parts = zip(
            x.chunk(len(means)), out.chunk(len(means)), means, variances, *saved, strict=True
        )
        for part, into, mean, variance, *kept in parts:
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, mean, variance, True, 1.0, eps,
                out=into, save_mean=kept[0], save_invstd=kept[1],
            )  # fmt: skip
        ctx.save_for_backward(x, weight, *saved)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, scales = ctx.saved_tensors
        into, wanted = torch.empty_like(x), [True, True, True]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        weights, biases = torch.zeros_like(weight), torch.zeros_like(weight)
        parts = (t.chunk(len(means)) for t in (x, grad, into))
        for part, g, out, mean, scale in zip(*parts, means, scales, strict=True):
            found = torch.ops.aten.native_batch_norm_backward(
                g, part, weight, None, None, mean, scale, True, ctx.eps, wanted
            )
            out.copy_(found[0])
            weights += found[1]
            biases += found[2]
        return into, weights, biases, None, None, None


def by_role(module: nn.Module) -> None:
    """Put `RoleBatchNorm2d` in the place of every plain `nn.BatchNorm2d` below a module."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d and child.affine and child.track_running_stats:
            child.__class__ = RoleBatchNorm2d  # with its parameters, buffers and hooks


def set_roles(module: nn.Module, roles: int) -> bool:
    """Tell every BatchNorm below a module how many roles come; False where one cannot know.

    Libraries' own BatchNorm, and SyncBatchNorm, take a batch as a whole.
    """
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    if not all(isinstance(norm, RoleBatchNorm2d) for norm in norms):
        return False
    for norm in norms:
        norm.roles = roles
    return True
