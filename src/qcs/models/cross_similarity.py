"""Cross similarity attention: what the faces of one class share, and what tells classes apart.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, section 3.2. The roles form a grid with a
row for each class and a column for each image, [a, p | n, n2]. The partner of a face within its
class is its neighbour in the row, the partner of the other class its neighbour in the column. Each
distance matrix is therefore computed once and serves both of its faces.

B batch, R roles (2 for DCS, 4 for QCS), N tokens of one level, C channels.
"""

from typing import Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from qcs.config.errors import UserError

SimilarityMode = Literal["both", "similarity", "distance"]
Mode = Literal["both", "similarity", "distance", "dot"]
Extremes = Literal["batch", "sample"]
Residual = Literal["normed", "prenorm"]


class SimilarityOptions(TypedDict, total=False):
    """The arguments of `CrossSimilarityBlock` that a config may choose."""

    mode: Mode
    extremes: Extremes
    residual: Residual


def aggregate(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a matrix of interactions between the tokens of two faces into a score of each token.

    Each token of one face has a vector of interactions with the tokens of the other face. This
    vector is scaled to unit length, and the vectors of all tokens are summed.

    Args:
        matrix: (..., N, N), the tokens of the left face in rows, of the right face in columns.

    Returns:
        The scores (..., N) of the left face's tokens and those of the right face's tokens.
    """
    left = F.normalize(matrix, dim=-2).sum(-1)
    right = F.normalize(matrix, dim=-1).sum(-2)
    return left, right


def token_distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances (B, P, N, N) between the tokens of P pairs of faces (B, P, N, C)."""
    return torch.cdist(left, right)


def cross_similarity(
    queries: Tensor,
    mode: SimilarityMode = "both",
    distance_gain: Tensor | float = 1.0,
    extremes: Extremes = "batch",
) -> Tensor:
    """Compute the attention weights of every token of every role.

    With D the distances between the tokens of two faces, the score is
    `aggregate(max D - D)` for the partner of the same class, plus
    `distance_gain * aggregate(D - min D)` for the partner of the other class. A softmax over the
    tokens of the role follows (section 3.2). With two roles there is no other class, and the second
    term is left out.

    `extremes` says over what the maximum and the minimum are taken. With "batch", as in the paper
    and its code, it is the whole batch, so the attention of a quadruplet depends on the others in
    its batch. Under DDP these are the ones on the same process: the same quadruplets split over
    another number of GPUs, or accumulated from smaller batches, give other gradients. "sample"
    takes the extremes over the quadruplet alone and depends on neither, but the published numbers
    were not trained with it.

    Args:
        queries: (B, R, N, C) with R = 2, or with R = 4 in the order [a, p, n, n2].
        mode: "both" terms or one of them, which is the paper's ablation. `distance_gain` belongs
            to the second term and has no effect on "similarity".
        distance_gain: factor of the second term, 1 + tanh(theta) in the paper.
        extremes: see above.

    Returns:
        (B, R, N), float32 or float64; the N weights of each role sum to 1. They are computed
        outside of autocast, because squared distances lose all precision in half precision.

    Raises:
        UserError: the mode "distance" with two roles, where there is no other class.

    Examples:
        >>> import torch
        >>> from qcs.models.cross_similarity import cross_similarity
        >>> queries = torch.randn(2, 4, 49, 8)  # two quadruplets, 7 x 7 tokens of 8 channels
        >>> attention = cross_similarity(queries)
        >>> attention.shape
        torch.Size([2, 4, 49])
        >>> torch.allclose(attention.sum(-1), torch.ones(2, 4))
        True
    """
    if mode == "distance" and queries.shape[1] == 2:
        raise UserError("mode=distance needs an image of another class: give four roles, not two")
    dims = (0, 2, 3) if extremes == "batch" else (2, 3)
    with torch.autocast(queries.device.type, enabled=False):
        q = queries.to(torch.promote_types(queries.dtype, torch.float32))
        q = q.unflatten(1, (-1, 2))  # (B, classes, images, N, C)
        if mode == "distance":
            return torch.softmax(distance_gain * _class_difference(q, dims), dim=-1)
        score = _class_similarity(q, dims)
        if mode == "both" and q.shape[1] == 2:
            score = score + distance_gain * _class_difference(q, dims)
        return torch.softmax(score, dim=-1)


def _class_similarity(q: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Score tokens (B, classes, images, N, C) by what two faces of a class share: (B, R, N)."""
    d = token_distances(q[:, :, 0], q[:, :, 1])  # (B, classes, N, N)
    first, second = aggregate(d.amax(dims, keepdim=True) - d)
    return torch.stack([first, second], dim=2).flatten(1, 2)


def _class_difference(q: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Score tokens (B, 2, images, N, C) by what tells two classes apart: (B, R, N)."""
    d = token_distances(q[:, 0], q[:, 1])  # (B, images, N, N)
    first, second = aggregate(d - d.amin(dims, keepdim=True))
    return torch.cat([first, second], dim=1)


def dot_attention(queries: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention from each role to its partner of the same class (the ablation).

    Args:
        queries: (B, R, N, C); those of the partner serve as keys, as in the paper's comparison.
        values: (B, R, N, C).

    Returns:
        (B, R, N, C), the values of the partner, weighted for each token.
    """
    partner = torch.arange(queries.shape[1], device=queries.device) ^ 1  # a with p, n with n2
    return F.scaled_dot_product_attention(queries, queries[:, partner], values[:, partner])


class CrossSimilarityBlock(nn.Module):
    """The cross similarity attention of one level with its MLP.

    Args:
        dim: C.
        roles: 2 (DCS) or 4 (QCS).
        mode: "both", "similarity" or "distance" as in `cross_similarity`, or "dot" for dot-product
            attention.
        extremes: see `cross_similarity`.
        residual: what the attention and the MLP are added to. "normed" adds to the values after
            LayerNorm, as the authors' files of QCS and of 7-class DCS do; "prenorm" adds to those
            before it, as in a usual pre-norm block and in their files of 8-class DCS.

    Raises:
        UserError: the mode "distance" with two roles, where there is no other class.
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
        if mode == "both" and roles == 4:  # otherwise no gradient would reach it
            self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Refine tokens (B, R, N, C); also return attention (B, R, N), None in the mode "dot"."""
        u = self.norm1(x)
        queries, values = self.proj(u).chunk(2, dim=-1)
        attention = None
        if self.mode == "dot":
            gathered = dot_attention(queries, values)
        else:
            gain = 1 + self.theta.tanh() if hasattr(self, "theta") else 1.0
            attention = cross_similarity(queries, self.mode, gain, self.extremes)
            gathered = attention.unsqueeze(-1) * values
        y = (u if self.residual == "normed" else x) + gathered
        h = self.norm2(y)
        return (h if self.residual == "normed" else y) + self.mlp(h), attention
