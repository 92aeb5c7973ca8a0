"""The QCS network: the plain classifier, DCS and QCS are one network with 1, 2 or 4 roles.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, figure 2. Inference keeps the base branch
alone. The cross module exists for training; its gradient reaches the base branch through the
residual sum, which the paper calls contrastive residual distillation.

B batch, R roles [a, p, n, n2], L levels, N tokens of a level, C = embed_dim, K classes, H and W
pixels.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from qcs.config.bounds import Count, Pixels
from qcs.config.errors import UserError
from qcs.models.backbones.feature_maps import map_channels
from qcs.models.base_branch import BaseBranch, BaseOptions
from qcs.models.cross_module import CrossModule, CrossOptions

# The anchor, the positive of the same class, the negative of another class, and a second image of
# the negative's class.
ROLES = ("a", "p", "n", "n2")


class Comparison(NamedTuple):
    """The outputs for groups of faces; every tensor has the role axis."""

    base_logits: Tensor  # (B, R, K)
    base_features: Tensor  # (B, R, C), the class tokens after the final norm
    cross_logits: Tensor | None = None  # (B, R, K); None without a cross module
    cross_features: Tensor | None = None  # (B, R, C); None without a cross module
    attention: Tensor | None = None  # (B, R, L, N), rows sum to 1; None in the mode "dot" as well


class QCSNetwork(nn.Module):
    """The base branch for every role and, in training, the cross module between the roles.

    Args:
        backbone: a module that answers like timm's `features_only`, see `BaseBranch`.
        num_classes: K.
        roles: R, which is 1 for the plain classifier, 2 for DCS (anchor and positive) or 4 for QCS
            (two negatives as well).
        input_size: pixels a side of the images that the backbone sees.
        embed_dim: C.
        grid: tokens a side of each level, so N is grid * grid.
        num_heads: number of attention heads in the encoders of both halves.
        base: further arguments of `BaseBranch`: depth, drop, attention_drop and landmarks.
        cross: further arguments of `CrossModule`: depth, drop, attention_drop, residual and
            similarity. None leaves the module out, which is its ablation.

    Raises:
        UserError: `roles` is not 1, 2 or 4; there is a cross module for a single role; the heads do
            not divide `embed_dim`; or the backbone does not fit.

    Examples:
        >>> import torch
        >>> from qcs.models import IR, QCSNetwork
        >>> backbone = IR(units=[1, 1], channels=[8, 16])  # two maps, so two levels
        >>> network = QCSNetwork(
        ...     backbone, num_classes=7, input_size=32, embed_dim=24, grid=4, cross={"depth": 1}
        ... )
        >>> network(torch.randn(2, 3, 32, 32)).shape  # two faces, classified by the base branch
        torch.Size([2, 7])
        >>> out = network.compare(torch.randn(2, 4, 3, 32, 32))  # two quadruplets
        >>> out.cross_logits.shape, out.attention.shape
        (torch.Size([2, 4, 7]), torch.Size([2, 4, 2, 16]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        roles: Literal[1, 2, 4] = 4,
        input_size: Pixels = 112,
        embed_dim: Count = 768,
        grid: Count = 7,
        num_heads: Count = 8,
        base: BaseOptions | None = None,
        cross: CrossOptions | None = None,
    ) -> None:
        super().__init__()
        if roles not in (1, 2, 4):
            raise UserError(f"model.roles is 1 (base), 2 (DCS) or 4 (QCS), got {roles}")
        if roles == 1 and cross is not None:
            raise UserError("model.roles=1 has nothing to compare: set model.cross=null")
        if embed_dim % num_heads:
            raise UserError(f"model.num_heads={num_heads} does not divide embed_dim={embed_dim}")
        self.roles, self.num_classes, self.grid = roles, num_classes, grid
        self.base = BaseBranch(
            backbone, num_classes, input_size, embed_dim, grid, num_heads=num_heads, **(base or {})
        )
        self.cross = None
        if cross is not None:
            levels = len(map_channels(backbone))
            self.cross = CrossModule(
                roles, levels, grid**2, embed_dim, num_classes, num_heads=num_heads, **cross
            )

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) with the base branch: logits (B, K)."""
        return self.base(images)[0]

    def compare(self, images: Tensor, groups: Tensor | None = None) -> Comparison:
        """Classify groups (B, R, 3, H, W) with both halves, for training and for pictures.

        Args:
            images: groups of faces.
            groups: (G, R), for images that are in several groups: each number is the position of
                an image among the B*R of `images`, and each row is a group to compare. The base
                branch takes each image once, and the outputs have G in the place of B.

        Raises:
            UserError: the groups have another number of roles than the network.
        """
        if images.shape[1] != self.roles:
            raise UserError(f"expected groups of {self.roles} roles, got {images.shape[1]}")
        logits, features, tokens = out = self.base.compare(images)
        if groups is not None:
            picked = (x.flatten(0, 1).index_select(0, groups.flatten()) for x in out)
            logits, features, tokens = (x.unflatten(0, groups.shape) for x in picked)
        if self.cross is None:
            return Comparison(logits, features)
        return Comparison(logits, features, *self.cross(tokens))
