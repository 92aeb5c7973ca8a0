"""IR-50, the face backbone of ArcFace, cut to the maps that QCS uses.

Source: Deng et al., "ArcFace", arXiv 1801.07698 (the "improved" residual unit); QCS and
POSTER++ keep its first three stages. Networks of other depths and widths are the same class with
other arguments (conf/backbone/ir_small.yaml). The class answers like timm's `features_only`: its
output is a list of maps (B, C, H, W), and its attribute `feature_info` describes them.

B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence

from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qcs.config.bounds import Count, Depth
from qcs.config.errors import UserError


class Subsample(nn.Module):
    """Keep every stride-th pixel; the papers' code writes it as a max-pool of one pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Sub-sample a map (B, C, H, W) to (B, C, ceil(H/stride), ceil(W/stride))."""
        return F.avg_pool2d(x, 1, self.stride) if self.stride > 1 else x


class IRUnit(nn.Module):
    """Improved residual unit: BatchNorm, convolution, PReLU, strided convolution, BatchNorm.

    Input (B, in_channels, H, W), output (B, out_channels, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = Subsample(stride)
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the shortcut and the residual."""
        return self.shortcut(x) + self.residual(x)


class IR(nn.Module):
    """Stages of improved residual units behind a 3x3 stem of stride `stem_stride`.

    The default is IR-50 up to its third stage: at 112 pixels the maps are 64x56x56,
    128x28x28 and 256x14x14. Every stage halves the resolution in its first unit.

    Args:
        units: number of residual units of each stage.
        channels: number of channels of each stage; the stem has as many as the first stage.
        stem_stride: stride of the stem. It is 1 in ArcFace; 2 makes every map half as wide and
            half as high, so that the network costs a quarter.

    Raises:
        UserError: `units` and `channels` differ in length, or hold a number below 1.
    """

    def __init__(
        self,
        units: Sequence[Depth] = (3, 4, 14),
        channels: Sequence[Count] = (64, 128, 256),
        stem_stride: Depth = 1,
    ) -> None:
        super().__init__()
        if len(units) != len(channels) or not units or min(*units, *channels, stem_stride) < 1:
            raise UserError(
                "backbone.units and backbone.channels need one positive number a stage each, "
                f"got {list(units)} and {list(channels)}"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.PReLU(channels[0]),
        )
        info, width = [], channels[0]
        for i, (depth, out) in enumerate(zip(units, channels, strict=True), start=1):
            stage = [
                IRUnit(width if j == 0 else out, out, 2 if j == 0 else 1) for j in range(depth)
            ]
            self.add_module(f"stage{i}", nn.Sequential(*stage))
            info.append({"num_chs": out, "reduction": stem_stride * 2**i, "module": f"stage{i}"})
            width = out
        self.feature_info = FeatureInfo(info, out_indices=tuple(range(len(info))))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the input of each unit, and run the unit again in the backward pass.

        BatchNorm's running statistics would then be updated in both passes. The caller prevents
        that by wrapping the backward pass in `qcs.training.sam.frozen_statistics`.
        """
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images (B, 3, H, W) into the map (B, C, H/2^i, W/2^i) of each stage i.

        With a stem of stride 2 the maps are half as wide and half as high as that.
        """
        x, maps = self.stem(images), []
        for name in self.feature_info.module_name():
            for unit in getattr(self, name):
                again = self.grad_checkpointing and x.requires_grad
                x = checkpoint(unit, x, use_reentrant=False) if again else unit(x)
            maps.append(x)
        return maps
