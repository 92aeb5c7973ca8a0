"""The same mathematics in other memory layouts and kernels.

Nothing here changes a key of the state dict or, beyond rounding, a number.
"""

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcs.models.network import QCSNetwork
from qcs.models.role_norm import by_role


class SpeedOptions(TypedDict, total=False):
    """Arguments of `speed_up` that are a choice."""

    channels_last: bool
    joint_roles: bool
    convolution_linear: bool


class ConvolutionLinear(nn.Linear):
    """`nn.Linear` as a 1x1 convolution.

    torch gives fp32 matrix products on a CPU to MKL, which runs at less than half of its speed
    on processors that are not Intel's, and convolutions to oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features)."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, rows, 1)
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def speed_up(
    network: QCSNetwork,
    channels_last: bool = False,
    joint_roles: bool = False,
    convolution_linear: bool = False,
) -> QCSNetwork:
    """Change a network in place.

    Args:
        network: to train or to use.
        channels_last: of convolutions' weights and maps; oneDNN and tensor cores like it.
        joint_roles: all roles through the backbone at once, BatchNorm still by role.
        convolution_linear: see `ConvolutionLinear`.
    """
    if joint_roles:
        by_role(network.base.backbone)
        network.base.joint_roles = True
    if convolution_linear:
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = ConvolutionLinear
    return network.to(memory_format=torch.channels_last) if channels_last else network
