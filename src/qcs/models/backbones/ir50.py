"""IR-50, the face backbone of ArcFace, cut to the maps that QCS uses.

Source: Deng et al., "ArcFace", arXiv 1801.07698 (the "improved" residual unit); QCS and
POSTER++ keep its first three stages. Other depths and widths are the same class with other
numbers (conf/backbone/ir_small.yaml). It speaks timm's `features_only` protocol: a list of
NCHW maps and `feature_info`.

B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence

from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qcs.config.bounds import Count, Depth
from qcs.config.errors import UserError


class Every(nn.Module):
    """Pick every stride-th pixel: a max-pool of one pixel in the papers."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H/stride), ceil(W/stride))."""
        return F.avg_pool2d(x, 1, self.stride) if self.stride > 1 else x


class IRUnit(nn.Module):
    """Improved residual unit: BN, 3x3 conv, PReLU, 3x3 conv with the stride, BN.

    Input (B, in_channels, H, W), output (B, out_channels, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if in_channels == out_channels:
            self.shortcut = Every(stride)
        else:
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
        """Return shortcut + residual."""
        return self.shortcut(x) + self.residual(x)


class IR(nn.Module):
    """Stages of improved residual units behind a 3x3 stem of stride `stem_stride`.

    The default is IR-50 up to its third stage: at 112 pixels the maps are 64x56x56,
    128x28x28 and 256x14x14. Every stage halves the resolution in its first unit.

    Args:
        units: number of residual units of each stage.
        channels: channels of each stage; the stem has those of the first.
        stem_stride: 1 as in ArcFace; 2 makes every map half as wide (four times cheaper).

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
        """Store the input of each unit alone, and run the unit again in the backward pass.

        Whoever does so must keep BatchNorm's running statistics still there
        (`qcs.training.sam.frozen_statistics`), or they move twice.
        """
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to one map (B, C, H/2^i, W/2^i) a stage."""
        x, maps = self.stem(images), []
        for name in self.feature_info.module_name():
            for unit in getattr(self, name):
                again = self.grad_checkpointing and x.requires_grad
                x = checkpoint(unit, x, use_reentrant=False) if again else unit(x)
            maps.append(x)
        return maps
