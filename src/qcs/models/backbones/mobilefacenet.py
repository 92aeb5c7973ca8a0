"""MobileFaceNet, a light face backbone, and the landmark branch of POSTER++.

Source: Chen et al., "MobileFaceNets", arXiv 1804.07573, as Xiaoccer/MobileFaceNet_Pytorch and
POSTER++ have it, up to the last map; the layers that turn that map into an embedding or into
landmarks are left out. The class answers like timm's `features_only`: its output is a list of maps
(B, C, H, W), and its attribute `feature_info` describes them. Submodules have the names of the
published files.

B batch, C channels, H and W pixels.
"""

from collections.abc import Sequence

from timm.models import FeatureInfo
from torch import Tensor, nn

from qcs.config.errors import UserError

# Each row is a stage of inverted bottlenecks: the expansion, the channels, the stride of the first
# bottleneck, and the number of bottlenecks.
BOTTLENECKS = ((2, 64, 2, 5), (4, 128, 2, 1), (2, 128, 1, 6), (4, 128, 2, 1), (2, 128, 1, 2))


class Unit(nn.Module):
    """Convolution, BatchNorm and PReLU.

    Input (B, in_channels, H, W), output (B, out_channels, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated map."""
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Inverted bottleneck: 1x1 up, 3x3 depth-wise, 1x1 down without activation.

    Input (B, in_channels, H, W), output (B, out_channels, ceil(H/stride), ceil(W/stride)). The
    input is added to the output where both have the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.connect = stride == 1 and in_channels == out_channels
        wide = expansion * in_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottleneck's map."""
        return x + self.conv(x) if self.connect else self.conv(x)


class MobileFaceNet(nn.Module):
    """Depth-wise bottlenecks behind a stride-2 stem; 0.9 million parameters.

    At 112 pixels the maps are 64x56x56, 64x28x28, 128x14x14 and 512x7x7 (reductions 2, 4, 8, 16).

    Args:
        out_indices: which of the four maps `forward` returns.

    Raises:
        UserError: `out_indices` is empty or has a number that is not 0, 1, 2 or 3.
    """

    def __init__(self, out_indices: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__()
        if not out_indices or not set(out_indices) <= {0, 1, 2, 3}:
            raise UserError(f"backbone.out_indices are of 0, 1, 2, 3, got {list(out_indices)}")
        self.conv1 = Unit(3, 64, 3, stride=2)
        self.dw_conv1 = Unit(64, 64, 3, groups=64)
        blocks, width, ends = [], 64, []
        for expansion, out, stride, number in BOTTLENECKS:
            for n in range(number):
                blocks.append(Bottleneck(width, out, 1 if n else stride, expansion))
                width = out
            ends.append(f"blocks.{len(blocks) - 1}")
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = Unit(width, 512, 1)
        maps = {"dw_conv1": 64, ends[0]: 64, ends[2]: 128, "conv2": 512}
        info = [
            {"num_chs": channels, "reduction": 2 ** (i + 1), "module": name}
            for i, (name, channels) in enumerate(maps.items())
        ]
        self.feature_info = FeatureInfo(info, out_indices=tuple(sorted(out_indices)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images (B, 3, H, W) into the maps of `out_indices`, the largest first."""
        wanted, maps = self.feature_info.module_name(), []
        layers: dict[str, nn.Module] = {"conv1": self.conv1, "dw_conv1": self.dw_conv1}
        layers |= {f"blocks.{i}": block for i, block in enumerate(self.blocks)}
        layers["conv2"] = self.conv2
        x = images
        for name, layer in layers.items():
            x = layer(x)
            if name in wanted:
                maps.append(x)
        return maps
