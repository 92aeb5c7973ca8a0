"""The landmark branch of POSTER++: the maps of the faces are looked at from those of landmarks.

Source: Mao et al., "POSTER++", arXiv 2301.12149, section 3, and the authors' code
(Talented-Q/POSTER_V2), which it follows number for number. A small frozen network that was trained
to find landmarks gives the queries; keys and values are of the backbone's maps. Three things differ
from plain attention: the query is the landmark map as it is, without norm or projection; the
residual is the normed image map; and the landmark network's weights stay while its BatchNorms
follow the training mode.

B batch, L levels, C channels of a level, S its pixels a side, N = S*S, heads of D channels.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from qcs.config.bounds import Count, Dropout
from qcs.config.errors import UserError
from qcs.models.backbones.feature_maps import map_sizes
from qcs.models.backbones.mobilefacenet import MobileFaceNet

REDUCTIONS = (2, 4, 8, 16)  # of the landmark network's maps


class LandmarkOptions(TypedDict, total=False):
    """Arguments of `LandmarkBranch` that are a choice, and where its weights come from."""

    weights: str | None  # a file: qcs.training.build reads it, the network starts at random
    head_size: Count
    drop_path: Dropout


class LandmarkAttention(nn.Module):
    """Cross attention from a landmark map to an image map, over all pixels of a level.

    Args:
        channels: C.
        side: S.
        head_size: D.
        drop_path: probability that a sample goes without a residual.
        init_scale: of the residuals' weights by channel.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        head_size: int = 32,
        drop_path: float = 0.0,
        init_scale: float = 1e-5,
    ) -> None:
        super().__init__()
        self.side, self.head_size = side, head_size
        self.norm1 = nn.LayerNorm(channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.position = nn.Parameter(torch.empty((2 * side - 1) ** 2, channels // head_size))
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.gamma1 = nn.Parameter(torch.full((channels,), init_scale))
        self.gamma2 = nn.Parameter(torch.full((channels,), init_scale))
        self.drop_path = DropPath(drop_path)
        trunc_normal_(self.position, std=0.02)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """Refine image (B, C, S, S) by landmarks (B, C, S, S)."""
        u = self.norm1(image.flatten(2).mT)  # (B, N, C)
        k, v = (self._heads(x) for x in self.kv(u).chunk(2, dim=-1))
        q = self._heads(landmarks.flatten(2).mT)
        bias = position_bias(self.position, self.side).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=self.head_size**-0.5)
        out = self.proj(out.transpose(1, 2).flatten(2))  # (B, N, C)
        y = u + self.drop_path(self.gamma1 * out)
        z = y + self.drop_path(self.gamma2 * self.mlp(self.norm2(y)))
        return z.mT.unflatten(2, (self.side, self.side))  # (B, C, S, S)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, h, N, D)


def position_bias(table: Tensor, side: int) -> Tensor:
    """Bias (h, N, N) of query pixel (y, x) and key pixel (y', x'): the table's row of their offset.

    Windows that slide over the table take the place of the usual buffer of indices (Swin), which
    weight averaging would average too, and truncate.

    Args:
        table: ((2S-1)^2, h), rows by (y - y' + S - 1) * (2S-1) + x - x' + S - 1.
        side: S.
    """
    offsets = table.view(2 * side - 1, 2 * side - 1, -1)
    windows = offsets.unfold(0, side, 1).unfold(1, side, 1)  # (S, S, h, S, S)
    pairs = windows.flip(3, 4).permute(2, 0, 1, 3, 4)  # the first offset is of the last key
    return pairs.reshape(-1, side**2, side**2)


class LandmarkBranch(nn.Module):
    """A frozen landmark network, and at each level the attention that it directs.

    A level takes the landmark map of its own size; where the channels differ a 3x3 convolution
    brings them to the level's.

    Args:
        channels: C of each level.
        sides: S of each level.
        input_size: pixels of the images that the landmark network sees.
        head_size: D.
        drop_path: of the last level; the rates rise evenly from 0 at the first.

    Raises:
        UserError: no landmark map has the size of a level, or heads do not divide its channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        sides: Sequence[int],
        input_size: int,
        head_size: int = 32,
        drop_path: float = 0.25,
    ) -> None:
        super().__init__()
        indices = [_source(level, side, input_size) for level, side in enumerate(sides, start=1)]
        chosen = sorted(set(indices))
        self.net = MobileFaceNet(chosen)
        map_sizes(self.net, input_size)  # leaves out what lies behind the last map
        self.net.requires_grad_(False)
        self.sources = [chosen.index(i) for i in indices]
        self.lateral, self.attention = nn.ModuleList(), nn.ModuleList()
        widths, rates = self.net.feature_info.channels(), _rates(drop_path, len(sides))
        levels = zip(channels, sides, self.sources, rates, strict=True)
        for level, (width, side, source, rate) in enumerate(levels, start=1):
            if width % head_size:
                raise UserError(
                    f"model.base.landmarks.head_size={head_size} does not divide the {width} "
                    f"channels of map {level} of the backbone; choose one that does"
                )
            same = widths[source] == width
            self.lateral.append(
                nn.Identity() if same else nn.Conv2d(widths[source], width, 3, padding=1)
            )
            self.attention.append(LandmarkAttention(width, side, head_size, rate))

    def forward(self, images: Sequence[Tensor], landmarks: Sequence[Tensor]) -> list[Tensor]:
        """Refine the levels' maps (B, C_l, S_l, S_l) by the maps of `net`; the shapes stay."""
        queries = [f(landmarks[i]) for f, i in zip(self.lateral, self.sources, strict=True)]
        return [f(x, q) for f, x, q in zip(self.attention, images, queries, strict=True)]


def _rates(last: float, number: int) -> list[float]:
    """Rates that rise evenly from 0, also where the network is built without memory (meta)."""
    return torch.linspace(0, last, number, device="cpu").tolist()


def _source(level: int, side: int, input_size: int) -> int:
    """Which map of the landmark network has `side` pixels."""
    given = [-(-input_size // reduction) for reduction in REDUCTIONS]
    if side not in given:
        raise UserError(
            f"level {level} of the pyramid is {side}x{side} pixels, the landmark network's maps at "
            f"model.input_size={input_size} are {given}: change model.input_size, model.grid or "
            "the backbone's stem_stride or out_indices, or set model.base.landmarks=null"
        )
    return given.index(side)
