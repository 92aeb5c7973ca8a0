"""From maps to tokens, and from tokens to logits.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988; POSTER++ (arXiv 2301.12149) has both parts.

B batch, L levels, N tokens of a level or of all, C = embed_dim, K classes.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import TypedDict

from qcs.config.bounds import Depth, Dropout
from qcs.config.errors import UserError


class EncoderOptions(TypedDict, total=False):
    """Arguments of `TokenEncoder` that are a choice."""

    depth: Depth
    drop: Dropout
    attention_drop: Dropout


def _halvings(size: int, grid: int) -> int | None:
    """How many stride-2 convolutions lead from `size` to `grid` pixels; None if none does."""
    count = 0
    while size > grid:
        size, count = (size + 1) // 2, count + 1
    return count if size == grid else None


class PyramidTokens(nn.Module):
    """Bring every map of the backbone to grid x grid tokens of `embed_dim` channels.

    A level takes one 3x3 stride-2 convolution at its own width, then as many as it needs at
    `embed_dim`, or a 1x1 convolution when none is needed (56, 28 and 14 pixels to 7 in the paper).

    Args:
        channels: channels of each map.
        sizes: (height, width) of each map, pixels.
        embed_dim: C.
        grid: tokens a side.

    Attributes:
        sides: pixels a side of each level after the convolution at its own width.

    Raises:
        UserError: a map cannot be halved to the grid.
    """

    def __init__(
        self, channels: Sequence[int], sizes: Sequence[tuple[int, int]], embed_dim: int, grid: int
    ) -> None:
        super().__init__()
        self.lateral, self.embed, self.sides = nn.ModuleList(), nn.ModuleList(), []
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
            kernel = dict(kernel_size=3, stride=2, padding=1) if steps > 1 else {"kernel_size": 1}
            convs = [nn.Conv2d(i, o, **kernel) for i, o in pairwise(widths)]
            self.embed.append(nn.Sequential(*convs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the variance; nothing normalises between
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Bring L maps (B, C_l, H_l, W_l) to (B, C_l, S_l, S_l), S_l of `sides`."""
        return [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Turn L levels (B, C_l, S_l, S_l) into tokens (B, L*N, C), level by level."""
        tokens = [embed(x).flatten(2).mT for embed, x in zip(self.embed, levels, strict=True)]
        return torch.cat(tokens, dim=1)


class TokenEncoder(nn.Module):
    """A small pre-norm ViT with a class token, a gated head and its normed tokens.

    Args:
        num_tokens: tokens without the class token.
        embed_dim: C.
        num_classes: K.
        depth: number of timm Blocks.
        num_heads: attention heads.
        drop: dropout after the position embedding and in the MLP.
        attention_drop: dropout after the attention's output projection (the authors' 8-class
            files use the same value as `drop`, their 7-class files none).
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
            *(
                Block(
                    embed_dim,
                    num_heads,
                    qkv_bias=True,
                    proj_drop=drop,
                    norm_layer=partial(nn.LayerNorm, eps=1e-6),
                )
                for _ in range(depth)
            )
        )
        for block in self.blocks:  # timm's proj_drop sets both places
            block.attn.proj_drop.p = attention_drop
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
        if isinstance(module, nn.Linear):  # the usual std of 0.02 suits 768 channels alone
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn tokens (B, N, C) into logits (B, K), features (B, C) and normed tokens (B, N, C)."""
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))
        z = x[:, 0]
        return self.head(z * self.gate(z).sigmoid()), z, x[:, 1:]
