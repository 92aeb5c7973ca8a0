"""BatchNorm that normalises each role of a batch of groups by itself.

The authors' network has four branches, and every role goes through the backbone alone. BatchNorm's
statistics are therefore those of one role, and its running statistics are updated once for each
role, in the order of the roles. This layer lets all roles go through the backbone together and
gives the same numbers.

B groups, R roles, C channels, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class RoleBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of each role; the state dict is the same.

    Attributes:
        roles: R. A batch holds all images of the first role, then all of the second one, and so
            on. With 1, the layer is an ordinary BatchNorm.
    """

    roles = 1
    # Optional in torch; `use_role_batchnorm` takes only layers that have them.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (R*B, C, H, W)."""
        if not self.training or self.roles == 1:
            return super().forward(x)
        # With momentum 1, torch's kernels replace these by the statistics of a role.
        means = torch.zeros(self.roles, self.num_features, dtype=self.weight.dtype, device=x.device)
        variances = torch.ones_like(means)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            out = _NormaliseInPlace.apply(x, self.weight, self.bias, means, variances, self.eps)
        else:
            parts = zip(x.chunk(self.roles), means, variances, strict=True)
            out = torch.cat(
                [
                    F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
                    for part, mean, variance in parts
                ]
            )
        self._update_running_statistics(means, variances)
        return out

    @torch.no_grad()
    def _update_running_statistics(self, means: Tensor, variances: Tensor) -> None:
        """Update the running statistics by those of each role (R, C), one role after the other."""
        for running, found in ((self.running_mean, means), (self.running_var, variances)):
            for role in found:
                running.lerp_(role.to(running.dtype), self.momentum)
        self.num_batches_tracked += self.roles


class _NormaliseInPlace(torch.autograd.Function):
    """Run torch's kernel on each role and let it write into its part of one output tensor.

    Joining the outputs of the roles afterwards would copy all of them.
    """

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


def use_role_batchnorm(module: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` within a module into a `RoleBatchNorm2d`."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d and child.affine and child.track_running_stats:
            child.__class__ = RoleBatchNorm2d  # which keeps its parameters, buffers and hooks


def set_roles(module: nn.Module, roles: int) -> bool:
    """Set the number of roles of every BatchNorm within a module.

    Returns:
        Whether all of them are `RoleBatchNorm2d`. If not, nothing is set: SyncBatchNorm, and the
        BatchNorm classes of other libraries, take the statistics of a batch as a whole.
    """
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    role_norms = [norm for norm in norms if isinstance(norm, RoleBatchNorm2d)]
    if len(role_norms) < len(norms):
        return False
    for norm in role_norms:
        norm.roles = roles
    return True
