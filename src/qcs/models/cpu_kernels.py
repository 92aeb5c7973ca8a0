"""The same mathematics with other kernels and other memory layouts, to train and predict faster.

Nothing here changes a key of the state dict. Results change by rounding alone, except with
`roles="joint"`.

B batch, C channels, K classes, H and W pixels.
"""

import ctypes
import sys
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from qcs.config.errors import UserError
from qcs.models.base_branch import RoleBatching
from qcs.models.batchnorm import use_role_batchnorm
from qcs.models.network import QCSNetwork


class SpeedOptions(TypedDict, total=False):
    """The arguments of `speed_up` that a config may choose."""

    channels_last: bool
    roles: RoleBatching
    cpu_kernels: bool
    keep_memory: bool
    compiled: bool


class ConvolutionLinear(nn.Linear):
    """`nn.Linear`, computed as a 1x1 convolution.

    On a CPU, torch computes float32 matrix products with MKL, which runs at less than half of its
    speed on processors that are not made by Intel. It computes convolutions with oneDNN, which
    does not have this disadvantage.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, C, 1, rows)
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


class VectorPReLU(nn.PReLU):
    """`nn.PReLU` with a vectorised gradient; torch's own takes four times as long on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        unsuited = x.device.type != "cpu" or x.shape[1:2] != self.weight.shape or x.ndim != 4
        if unsuited or torch.compiler.is_compiling():
            return super().forward(x)
        return _VectorPReLU.apply(x, self.weight)


class _VectorPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        scale = weight.to(x.dtype).view(1, -1, 1, 1)
        out = torch.lerp(torch.ops.aten.threshold_backward(grad, x, 0), grad, scale)
        return out, x.clamp(max=0).mul_(grad).sum((0, 2, 3)).to(weight.dtype)


class ExplicitAttention(Attention):
    """timm's attention, with an explicit softmax where a CPU computes in bfloat16.

    torch's fused kernel takes twice as long there.
    """

    @property  # type: ignore[misc]  # final in timm, but only for TorchScript
    def fused_attn(self) -> bool:
        """Whether torch's fused kernel is used."""
        return self.qkv.weight.device.type != "cpu" or not torch.is_autocast_enabled("cpu")


def speed_up(
    network: QCSNetwork,
    channels_last: bool = False,
    roles: RoleBatching = "apart",
    cpu_kernels: bool = False,
    keep_memory: bool = False,
    compiled: bool = False,
) -> QCSNetwork:
    """Choose how a network is computed; it is changed in place and returned.

    Args:
        network: the network to train or to predict with.
        channels_last: whether weights and maps of convolutions are stored with the channels last,
            for which oneDNN and tensor cores are faster.
        roles: how the roles of a group pass through the backbone in training. "apart" is one after
            the other, as in the papers. "together" is at once, with BatchNorm statistics of each
            role, and gives the same numbers. "joint" is at once with BatchNorm statistics over all
            roles, which is other mathematics.
        cpu_kernels: whether to use `ConvolutionLinear`, `VectorPReLU` and `ExplicitAttention`.
        keep_memory: whether to call `keep_freed_memory`.
        compiled: whether torch.compile compiles the parts; this takes minutes at the first step.

    Raises:
        UserError: `compiled` is set and there is no C++ compiler.
    """
    if roles == "together":
        use_role_batchnorm(network.base)
    network.base.role_batching = roles
    if cpu_kernels:
        use_cpu_kernels(network)
    if keep_memory:
        keep_freed_memory()
    if compiled:
        require_compiler("speed.compiled=true")
        _compile(network)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _compile(network: QCSNetwork) -> None:
    """Let torch.compile compile each part at its first use."""
    base = network.base
    parts: list[nn.Module | None] = [base.backbone, base.landmarks, base.encoder, network.cross]
    if base.landmarks is not None:
        parts.append(base.landmarks.net)
    for part in parts:
        if part is not None:
            part.compile()


def use_cpu_kernels(module: nn.Module) -> None:
    """Turn the linear layers, PReLUs and attentions within a module into the faster ones above."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: ConvolutionLinear,
        nn.PReLU: VectorPReLU,
        Attention: ExplicitAttention,
    }
    for child in module.modules():
        faster = kinds.get(type(child))
        if faster:
            child.__class__ = faster


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process keep the memory of freed tensors, where the C library is glibc.

    By default the memory of a large tensor goes back to the system when the tensor is freed, and
    the next step has to wait for the system to provide and zero it again. There is no effect with
    other C libraries.

    Args:
        keep: False restores the thresholds that glibc itself arrives at in large programs.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # the constants of malloc.h
    libc.mallopt(mmap_max, 0 if keep else 65536)
    libc.mallopt(trim_threshold, -1 if keep else 2**26)
    if not keep:
        libc.mallopt(mmap_threshold, 2**25)
        libc.malloc_trim(0)


def require_compiler(why: str) -> None:
    """Check that torch.compile finds a C++ compiler for the CPU.

    Raises:
        UserError: there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise UserError(f"{why} needs a C++ compiler: install g++, or leave it out") from error
