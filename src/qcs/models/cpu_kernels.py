"""The same mathematics in other memory layouts, kernels and forms.

Nothing here changes a key of the state dict or, but for rounding and `roles="joint"`, a number.

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
from qcs.models.network import QCSNetwork, Roles
from qcs.models.role_batchnorm import by_role


class SpeedOptions(TypedDict, total=False):
    """Arguments of `speed_up` that are a choice."""

    channels_last: bool
    roles: Roles
    cpu_kernels: bool
    keep_memory: bool
    compiled: bool


class ConvolutionLinear(nn.Linear):
    """`nn.Linear` as a 1x1 convolution.

    torch gives fp32 matrix products on a CPU to MKL, which runs at less than half of its speed
    on processors that are not Intel's, and convolutions to oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)  # (1, C, 1, rows)
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


class VectorPReLU(nn.PReLU):
    """`nn.PReLU` with a gradient of vectorised passes: torch's takes a CPU four times as long."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W)."""
        plain = x.device.type != "cpu" or x.shape[1:2] != self.weight.shape or x.ndim != 4
        if plain or torch.compiler.is_compiling():
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
    """timm's attention by explicit softmax in bf16 on a CPU: torch's own takes twice as long."""

    @property
    def fused_attn(self) -> bool:
        """Whether torch's kernel is taken."""
        return self.qkv.weight.device.type != "cpu" or not torch.is_autocast_enabled("cpu")


def speed_up(
    network: QCSNetwork,
    channels_last: bool = False,
    roles: Roles = "apart",
    cpu_kernels: bool = False,
    keep_memory: bool = False,
    compiled: bool = False,
) -> QCSNetwork:
    """Change a network in place.

    Args:
        network: to train or to use.
        channels_last: of convolutions' weights and maps; oneDNN and tensor cores like it.
        roles: through the backbone "apart", one after the other as in the papers; "together", at
            once with BatchNorm still by role; "joint", at once with BatchNorm over all of them,
            which is other mathematics.
        cpu_kernels: see `ConvolutionLinear`, `VectorPReLU` and `ExplicitAttention`.
        keep_memory: see the function.
        compiled: torch.compile, at the first step (minutes).

    Raises:
        UserError: `compiled` without a C++ compiler.
    """
    if roles == "together":
        by_role(network.base)
    network.base.roles = roles
    if cpu_kernels:
        use_cpu_kernels(network)
    if keep_memory:
        hold_memory()
    if compiled:
        require_compiler("speed.compiled=true")
        base = network.base
        parts = [base.backbone, base.landmarks, base.encoder, network.cross]
        parts += [] if base.landmarks is None else [base.landmarks.net]
        for part in parts:
            if part is not None:
                part.compile()
    return network.to(memory_format=torch.channels_last) if channels_last else network


def use_cpu_kernels(module: nn.Module) -> None:
    """Put `ConvolutionLinear`, `VectorPReLU` and `ExplicitAttention` in the place of plain ones."""
    kinds = {
        nn.Linear: ConvolutionLinear,
        nn.PReLU: VectorPReLU,
        Attention: ExplicitAttention,
    }
    for child in module.modules():
        faster = kinds.get(type(child))
        if faster:
            child.__class__ = faster


def hold_memory(hold: bool = True) -> None:
    """Let freed memory stay with this process, where the C library is glibc; no effect elsewhere.

    By default large tensors go back to the system when they are freed, and the next step pays for
    fresh, zeroed pages. False puts back what glibc itself arrives at for large programs.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    libc.mallopt(mmap_max, 0 if hold else 65536)
    libc.mallopt(trim_threshold, -1 if hold else 2**26)
    if not hold:
        libc.mallopt(mmap_threshold, 2**25)
        libc.malloc_trim(0)


def require_compiler(why: str) -> None:
    """Raise ValueError where torch.compile would find no C++ compiler for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise UserError(f"{why} needs a C++ compiler: install g++, or leave it out") from error
