"""From the backbone's maps to tokens, and from tokens to logits.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988; POSTER++ (arXiv 2301.12149) has both parts.

B batch, L levels, N tokens, C = embed_dim, K classes. C_l, H_l and W_l are the channels, height and
width of the map of level l, S_l its pixels a side after the lateral convolution.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import TypedDict

from qcs.config.bounds import Depth, Dropout
from qcs.config.errors import UserError


class EncoderOptions(TypedDict, total=False):
    """The arguments of `TokenEncoder` that a config may choose."""

    depth: Depth
    drop: Dropout
    attention_drop: Dropout


def _halvings(size: int, grid: int) -> int | None:
    """Count the stride-2 convolutions that lead from `size` to `grid` pixels; None if none do."""
    count = 0
    while size > grid:
        size, count = (size + 1) // 2, count + 1
    return count if size == grid else None


class PyramidTokens(nn.Module):
    """Bring every map of the backbone to grid x grid tokens of `embed_dim` channels.

    The first 3x3 convolution of a level has stride 2 and keeps the channels of its map. Further
    3x3 convolutions of stride 2 follow, the first of which changes to `embed_dim` channels, until
    the grid is reached; where none is needed, a 1x1 convolution changes the channels. In the paper
    the maps of 56, 28 and 14 pixels a side become 7 x 7 tokens each.

    Args:
        channels: number of channels of each map.
        sizes: (height, width) of each map in pixels.
        embed_dim: C.
        grid: tokens a side.

    Attributes:
        sides: S_l, the pixels a side of each level after its first convolution.

    Raises:
        UserError: a map is not square, or halving its side does not lead to the grid.
    """

    def __init__(
        self, channels: Sequence[int], sizes: Sequence[tuple[int, int]], embed_dim: int, grid: int
    ) -> None:
        super().__init__()
        self.lateral, self.embed = nn.ModuleList(), nn.ModuleList()
        self.sides: list[int] = []
        for level, (width, (h, w)) in enumerate(zip(channels, sizes, strict=True), start=1):
            steps = _halvings(h, grid)
            if steps is None or h != w:
                raise UserError(
                    f"map {level} of the backbone is {h}x{w} pixels, which halving does not bring "
                    f"to the {grid}x{grid} tokens of model.grid={grid}; change model.grid, "
                    "model.input_size or the backbone's out_indices"
                )
            self.lateral.append(nn.Conv2d(width, width, 3, 2, 1) if steps else nn.Identity())
            self.sides.append((h + 1) // 2 if steps else h)
            widths = [width] + [embed_dim] * max(steps - 1, 1)
            kernel, stride, padding = (3, 2, 1) if steps > 1 else (1, 1, 0)
            convs = [nn.Conv2d(i, o, kernel, stride, padding) for i, o in pairwise(widths)]
            self.embed.append(nn.Sequential(*convs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # No norm lies between these convolutions, so each must keep the variance itself.
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Bring L maps (B, C_l, H_l, W_l) to L levels (B, C_l, S_l, S_l)."""
        return [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Turn L levels (B, C_l, S_l, S_l) into tokens (B, L*N, C), level by level."""
        tokens = [embed(x).flatten(2).mT for embed, x in zip(self.embed, levels, strict=True)]
        return torch.cat(tokens, dim=1)


def _block(embed_dim: int, num_heads: int, drop: float, attention_drop: float) -> Block:
    """Build one transformer block."""
    norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it, but declares it as a class
    block = Block(embed_dim, num_heads, qkv_bias=True, proj_drop=drop, norm_layer=norm)
    attention: Any = block.attn  # torch declares every attribute as a tensor or a module
    attention.proj_drop.p = attention_drop  # timm gives it the dropout of the MLP
    return block


class TokenEncoder(nn.Module):
    """A small pre-norm vision transformer with a class token and a gated linear head.

    Args:
        num_tokens: N, without the class token.
        embed_dim: C.
        num_classes: K.
        depth: number of transformer blocks.
        num_heads: number of attention heads of each block.
        drop: dropout probability after the position embedding and in the MLP.
        attention_drop: dropout probability after the attention's output projection. The authors'
            files for 8 classes use the same value as `drop`, those for 7 classes use 0.
    """

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        num_classes: int,
        depth: int,
        num_heads: int = 8,
        drop: float = 0.0,
        attention_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens + 1, embed_dim))
        self.pos_drop = nn.Dropout(drop)
        self.blocks = nn.Sequential(
            *(_block(embed_dim, num_heads, drop, attention_drop) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.gate = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim)
        )
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(self._init)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # Unlike the usual standard deviation of 0.02, this suits any number of channels.
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode tokens.

        Args:
            tokens: (B, N, C).

        Returns:
            Logits (B, K), features (B, C), which are the class token after the final norm, and the
            other tokens (B, N, C) after that norm.
        """
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))
        z = x[:, 0]
        return self.head(z * self.gate(z).sigmoid()), z, x[:, 1:]
