"""The landmark branch of POSTER++: cross attention from the maps of facial landmarks to the face's.

Source: Mao et al., "POSTER++", arXiv 2301.12149, section 3, and the authors' code
(Talented-Q/POSTER_V2), whose numbers it reproduces. A small frozen network that was trained to find
landmarks provides the queries; the backbone's maps provide keys and values. This differs from usual
attention in three ways: the landmark map itself is the query, without norm or projection; the
residual is the image map after its norm; and the BatchNorms of the landmark network take the
statistics of the batch in training, although its weights are frozen.

B batch, L levels, C channels of a level, S pixels a side of its map, N = S*S, h heads of D channels
each.
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

REDUCTIONS = (2, 4, 8, 16)  # how many times smaller than the image each landmark map is


class LandmarkBranchOptions(TypedDict, total=False):
    """The arguments of `LandmarkBranch` that a config may choose."""

    head_size: Count
    drop_path: Dropout


class LandmarkOptions(LandmarkBranchOptions, total=False):
    """The same in a config, which also names the file of the landmark network's weights."""

    weights: str | None  # read by `qcs.training.build`; without it the weights are random


class LandmarkAttention(nn.Module):
    """Cross attention from a landmark map to an image map, over all pixels of a level.

    Args:
        channels: C.
        side: S.
        head_size: D.
        drop_path: probability that attention or MLP are left out for an image (stochastic depth).
        init_scale: first value of the weights that scale each channel of attention and MLP.
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
        """Refine the image's map (B, C, S, S) by the landmarks' map (B, C, S, S)."""
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
    """Look up the relative position bias of every pair of pixels.

    The bias of a query pixel (y, x) and a key pixel (y', x') is the row of the table that belongs
    to their offset. Swin keeps the numbers of these rows in a buffer; weight averaging would
    average that buffer and truncate the result to integers. Here windows slide over the table
    instead, so that no buffer is needed.

    Args:
        table: ((2S-1)^2, h); the row of an offset is (y - y' + S - 1) * (2S-1) + x - x' + S - 1.
        side: S.

    Returns:
        (h, N, N), queries in rows and keys in columns.
    """
    offsets = table.view(2 * side - 1, 2 * side - 1, -1)
    windows = offsets.unfold(0, side, 1).unfold(1, side, 1)  # (S, S, h, S, S)
    # The first offset belongs to the last key.
    pairs = windows.flip(3, 4).permute(2, 0, 1, 3, 4)
    return pairs.reshape(-1, side**2, side**2)


class LandmarkBranch(nn.Module):
    """A frozen landmark network, and at each level the attention from its map to the backbone's.

    Each level uses the landmark map of its own size. Where the numbers of channels differ, a 3x3
    convolution gives the landmark map the channels of the level.

    Args:
        channels: C of each level.
        sides: S of each level.
        input_size: pixels a side of the images that the landmark network sees.
        head_size: D.
        drop_path: rate of stochastic depth at the last level; it rises evenly from 0 at the first.

    Raises:
        UserError: no landmark map has the size of a level, or `head_size` does not divide its
            channels.
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
        used = sorted(set(indices))
        self.net = MobileFaceNet(used)
        map_sizes(self.net, input_size)  # also removes what lies behind the last map
        self.net.requires_grad_(False)
        self.sources = [used.index(i) for i in indices]
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
        """Refine the backbone's L maps (B, C, S, S) by the maps of the landmark network."""
        queries = [f(landmarks[i]) for f, i in zip(self.lateral, self.sources, strict=True)]
        return [f(x, q) for f, x, q in zip(self.attention, images, queries, strict=True)]


def _rates(last: float, number: int) -> list[float]:
    """Rates that rise evenly from 0 to `last`."""
    # On the CPU, because they are read also where the network is built on the device "meta".
    return torch.linspace(0, last, number, device="cpu").tolist()


def _source(level: int, side: int, input_size: int) -> int:
    """Return the index of the landmark map that is `side` pixels wide."""
    given = [-(-input_size // reduction) for reduction in REDUCTIONS]
    if side not in given:
        raise UserError(
            f"level {level} of the pyramid is {side}x{side} pixels, the landmark network's maps at "
            f"model.input_size={input_size} are {given}: change model.input_size, model.grid or "
            "the backbone's stem_stride or out_indices, or set model.base.landmarks=null"
        )
    return given.index(side)
