"""Cross similarity attention: what the faces of one class share, and what tells them apart.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, section 3.2. The roles are a grid
of classes and images, [a, p | n, n2]: the same-class partner of a face is its neighbour in
the row, the other-class partner its neighbour in the column. So every distance matrix is
computed once and serves both of its faces.

B batch, R roles (2 for DCS, 4 for QCS), N tokens of one level, C channels.
"""

from typing import Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from qcs.config.errors import UserError

Mode = Literal["both", "similarity", "distance", "dot"]
Extremes = Literal["batch", "sample"]
Residual = Literal["normed", "prenorm"]


class SimilarityOptions(TypedDict, total=False):
    """Arguments of `CrossSimilarityBlock` that are a choice."""

    mode: Mode
    extremes: Extremes
    residual: Residual


def spread(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Let each token of one face spread a unit vector over the tokens of the other; sum them.

    Args:
        matrix: (..., N, N) interactions of the tokens of a left (rows) and a right face.

    Returns:
        Scores (..., N) of the left face's tokens and of the right face's.
    """
    left = F.normalize(matrix, dim=-2).sum(-1)
    right = F.normalize(matrix, dim=-1).sum(-2)
    return left, right


def token_distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances (B, P, N, N) of the tokens of P pairs of faces (B, P, N, C)."""
    return torch.cdist(left, right)


def cross_similarity(
    queries: Tensor,
    mode: Literal["both", "similarity", "distance"] = "both",
    distance_gain: Tensor | float = 1.0,
    extremes: Extremes = "batch",
) -> Tensor:
    """Attention weights of every token of every role.

    `score = spread(max D - D of the same class) + distance_gain * spread(D - min D of the
    other class)`, then a softmax over the tokens of the role (section 3.2; the distance term
    is absent in a pair).

    `extremes` says what the maximum and the minimum are taken over. With "batch", as in the
    paper and its code, it is the whole batch, so the attention of a quadruplet depends on
    its batch mates. Under DDP that means the mates on its own rank: the same quadruplets split
    over another number of GPUs, or accumulated from smaller batches, give other gradients.
    "sample" takes them over the quadruplet alone and is free of both; it is not what the
    published numbers were trained with.

    Args:
        queries: (B, R, N, C); R = 2, or 4 in the order [a, p, n, n2].
        mode: both terms, or one of them (the paper's ablation; no gain in "distance").
        distance_gain: 1 + tanh(theta) in the paper.
        extremes: see above.

    Returns:
        (B, R, N), float32 or float64, rows sum to 1. Computed outside of autocast: squared
        distances lose everything in half precision.
    """
    dims = (0, 2, 3) if extremes == "batch" else (2, 3)
    with torch.autocast(queries.device.type, enabled=False):
        q = queries.to(torch.promote_types(queries.dtype, torch.float32))
        q = q.unflatten(1, (-1, 2))  # (B, classes, images, N, C)
        score: Tensor | float = 0.0
        if mode != "distance":
            d = token_distances(q[:, :, 0], q[:, :, 1])  # (B, classes, N, N)
            first, second = spread(d.amax(dims, keepdim=True) - d)
            score = torch.stack([first, second], dim=2).flatten(1, 2)  # (B, R, N)
        if mode != "similarity" and q.shape[1] == 2:
            d = token_distances(q[:, 0], q[:, 1])  # (B, images, N, N)
            first, second = spread(d - d.amin(dims, keepdim=True))
            score = score + distance_gain * torch.cat([first, second], dim=1)  # (B, R, N)
        return torch.softmax(score, dim=-1)


def dot_attention(queries: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention of each role to its same-class partner (the ablation).

    Args:
        queries: (B, R, N, C), also the keys of the partner, as in the paper's comparison.
        values: (B, R, N, C).

    Returns:
        (B, R, N, C): the partner's values, gathered by each token.
    """
    partner = torch.arange(queries.shape[1], device=queries.device) ^ 1  # a-p, n-n2
    return F.scaled_dot_product_attention(queries, queries[:, partner], values[:, partner])


class CrossSimilarityBlock(nn.Module):
    """One level's cross similarity attention with its MLP.

    Args:
        dim: channels C.
        roles: 2 (DCS) or 4 (QCS).
        mode: "both", "similarity", "distance", or "dot" for dot-product attention.
        extremes: see `cross_similarity`.
        residual: "normed" adds to the LayerNormed value, as the authors' QCS and 7-class DCS
            files do; "prenorm" is a plain pre-norm block, as their 8-class DCS files do.

    Raises:
        UserError: "distance" is asked of a pair, which has no other class.
    """

    def __init__(
        self,
        dim: int,
        roles: int,
        mode: Mode = "both",
        extremes: Extremes = "batch",
        residual: Residual = "normed",
    ) -> None:
        super().__init__()
        if mode == "distance" and roles == 2:
            raise UserError(
                "model.cross.similarity.mode=distance needs an image of another class: "
                "set model.roles=4, or mode=similarity"
            )
        self.mode, self.extremes, self.residual = mode, extremes, residual
        self.norm1 = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, 2 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        if mode == "both" and roles == 4:  # elsewhere nothing would reach it
            self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return refined tokens (B, R, N, C) and attention (B, R, N) (None for "dot")."""
        u = self.norm1(x)
        queries, values = self.proj(u).chunk(2, dim=-1)
        if self.mode == "dot":
            attention, gathered = None, dot_attention(queries, values)
        else:
            gain = 1 + self.theta.tanh() if hasattr(self, "theta") else 1.0
            attention = cross_similarity(queries, self.mode, gain, self.extremes)
            gathered = attention.unsqueeze(-1) * values
        y = (u if self.residual == "normed" else x) + gathered
        h = self.norm2(y)
        return (h if self.residual == "normed" else y) + self.mlp(h), attention
