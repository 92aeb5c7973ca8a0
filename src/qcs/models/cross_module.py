"""The cross module: the faces of a group are compared level by level; used in training only.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, figure 2.

B batch, R roles, L levels, N tokens of a level, C = embed_dim, K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from qcs.models.cross_similarity import CrossSimilarityBlock, SimilarityOptions
from qcs.models.tokens import EncoderOptions, TokenEncoder

Partners = Literal["shuffled"] | None


class CrossOptions(EncoderOptions, total=False):
    """The arguments of `CrossModule` that a config may choose."""

    residual: bool
    partners: Partners
    similarity: SimilarityOptions


class CrossModule(nn.Module):
    """Cross similarity attention of each level and a token encoder over the refined tokens.

    Args:
        roles: R, 2 or 4.
        num_levels: L.
        num_tokens: N.
        embed_dim: C.
        num_classes: K.
        depth, num_heads, drop, attention_drop: of the token encoder, see `TokenEncoder`.
        residual: whether the base branch's tokens are added before the encoder. Through this sum
            the gradient of the cross module reaches the base branch, which the paper calls
            contrastive residual distillation; False is its ablation.
        partners: None compares a face with the others of its group. "shuffled" is a control, in
            which faces of other groups take their places: each role is moved along the batch by
            another number of groups, so the batch should have R groups or more.
        similarity: arguments of `CrossSimilarityBlock`.
    """

    def __init__(
        self,
        roles: int,
        num_levels: int,
        num_tokens: int,
        embed_dim: int,
        num_classes: int,
        depth: int = 1,
        num_heads: int = 8,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        residual: bool = True,
        partners: Partners = None,
        similarity: SimilarityOptions | None = None,
    ) -> None:
        super().__init__()
        self.residual, self.partners = residual, partners
        self.attention = nn.ModuleList(
            CrossSimilarityBlock(embed_dim, roles, **(similarity or {})) for _ in range(num_levels)
        )
        self.encoder = TokenEncoder(
            num_levels * num_tokens, embed_dim, num_classes, depth, num_heads, drop, attention_drop
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compare the tokens of a group.

        Args:
            tokens: (B, R, L*N, C), those of the base branch.

        Returns:
            Logits (B, R, K), features (B, R, C) and attention (B, R, L, N). The attention is None
            in the mode "dot", whose weights are not of this shape.
        """
        if self.partners == "shuffled":
            tokens = _moved(tokens, 1)
        levels = tokens.chunk(len(self.attention), dim=2)
        out, weights = zip(
            *(f(x) for f, x in zip(self.attention, levels, strict=True)), strict=True
        )
        refined = torch.cat(out, dim=2)  # (B, R, L*N, C)
        if self.residual:
            refined = tokens + refined
        logits, features, _ = self.encoder(refined.flatten(0, 1))
        attention = None if weights[0] is None else torch.stack(weights, dim=2)
        group = tokens.shape[:2]
        logits, features = logits.unflatten(0, group), features.unflatten(0, group)
        if self.partners == "shuffled":
            logits, features = _moved(logits, -1), _moved(features, -1)
            attention = None if attention is None else _moved(attention, -1)
        return logits, features, attention


def _moved(x: Tensor, step: int) -> Tensor:
    """Move role r of (B, R, ...) by r * step groups, the last ones to the front."""
    roles = [role.roll(step * number, dims=0) for number, role in enumerate(x.unbind(1))]
    return torch.stack(roles, dim=1)
