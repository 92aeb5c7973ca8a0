"""The QCS network: one formulation for the plain classifier, DCS and QCS.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, figure 2. The base branch is what
inference keeps; the cross module exists for training, and its gradient reaches the base
branch through the residual path (the paper's contrastive residual distillation).

B batch, R roles [a, p, n, n2], L levels, N tokens of a level, C = embed_dim, K classes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcs.config.bounds import Count, Pixels
from qcs.config.errors import UserError
from qcs.models.backbones.feature_maps import map_sizes
from qcs.models.cross_similarity import CrossSimilarityBlock, SimilarityOptions
from qcs.models.landmarks import LandmarkBranch, LandmarkOptions
from qcs.models.role_batchnorm import set_roles
from qcs.models.tokens import EncoderOptions, PyramidTokens, TokenEncoder

ROLES = ("a", "p", "n", "n2")  # anchor, positive, negative, another of the negative's class
Roles = Literal["apart", "together", "joint"]  # on their way through the backbone


class BaseOptions(EncoderOptions, total=False):
    """Arguments of `BaseBranch` that are a choice."""

    landmarks: LandmarkOptions | None


class CrossOptions(EncoderOptions, total=False):
    """Arguments of `CrossModule` that are a choice."""

    residual: bool
    similarity: SimilarityOptions


class Comparison(NamedTuple):
    """What a forward on groups of faces gives; every tensor has the role axis."""

    base_logits: Tensor  # (B, R, K)
    base_features: Tensor  # (B, R, C) class tokens after the final norm
    cross_logits: Tensor | None = None  # (B, R, K); None without a cross module
    cross_features: Tensor | None = None  # (B, R, C)
    attention: Tensor | None = None  # (B, R, L, N), rows sum to 1; None for mode "dot" as well


class BaseBranch(nn.Module):
    """Backbone, pyramid tokens and token encoder: all that inference keeps.

    Args:
        backbone: answers like timm's `features_only` (a list of NCHW maps, `feature_info`).
        num_classes: K.
        input_size: images are sub-sampled to this many pixels by nearest neighbour (224 to
            112 in the paper: every second pixel).
        embed_dim, grid, depth, num_heads, drop, attention_drop: see the parts.
        landmarks: arguments of `LandmarkBranch` that are a choice; None leaves it out. With it
            and one role the network is POSTER++.

    Raises:
        UserError: the backbone's maps are not NCHW, do not fit the grid or the landmarks'.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        input_size: int = 112,
        embed_dim: int = 768,
        grid: int = 7,
        depth: int = 2,
        num_heads: int = 8,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        landmarks: LandmarkOptions | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.backbone, self.roles = backbone, "apart"
        channels, sizes = backbone.feature_info.channels(), map_sizes(backbone, input_size)
        self.pyramid = PyramidTokens(channels, sizes, embed_dim, grid)
        self.landmarks = None
        if landmarks is not None:
            sides = self.pyramid.sides
            self.landmarks = LandmarkBranch(channels, sides, input_size, **landmarks)
        self.encoder = TokenEncoder(
            len(channels) * grid**2, embed_dim, num_classes, depth, num_heads, drop, attention_drop
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Sub-sample images (B, 3, H, W) and return the backbone's maps (B, C_l, H_l, W_l).

        Those of the landmark network, if any, follow. All that holds BatchNorm is here.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, size=self.input_size, mode="nearest")
        maps = self.backbone(images)
        return maps if self.landmarks is None else [*maps, *self.landmarks.net(images)]

    def _encode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        number = len(self.pyramid.sides)
        levels = self.pyramid.levels(maps[:number])
        if self.landmarks is not None:
            levels = self.landmarks(levels, maps[number:])
        return self.encoder(self.pyramid(levels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn images (B, 3, H, W) into logits (B, K), features (B, C), tokens (B, L*N, C)."""
        if self.training and self.roles == "together":
            set_roles(self, 1)
        return self._encode(self.maps(images))

    def compare(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same for groups (B, R, 3, H, W); every output gains the role axis.

        In training BatchNorm normalises (and counts) each role by itself, as in the paper's four
        branches: the roles pass the backbone one after the other, or `together` through
        `qcs.models.role_batchnorm`; `joint` takes the statistics over all roles. What follows
        holds no BatchNorm and takes all at once.
        """
        roles = images.transpose(0, 1)  # (R, B, 3, H, W)
        at_once = not self.training or self.roles == "joint"
        if at_once or (self.roles == "together" and set_roles(self, len(roles))):
            maps = self.maps(roles.flatten(0, 1))
        else:
            levels = zip(*(self.maps(x) for x in roles), strict=True)
            maps = [torch.cat(m) for m in levels]  # (R*B, C_l, H_l, W_l)
        out = self._encode(maps)
        return tuple(x.unflatten(0, roles.shape[:2]).transpose(0, 1) for x in out)


class CrossModule(nn.Module):
    """Cross similarity attention of each level and a token encoder over the refined tokens.

    Args:
        roles: 2 or 4.
        num_levels, num_tokens: L and N.
        embed_dim, num_classes, depth, num_heads, drop, attention_drop: see `TokenEncoder`.
        residual: add the base branch's tokens before the encoder; it is the path of the paper's
            contrastive residual distillation. False is its ablation.
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
        similarity: SimilarityOptions | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.attention = nn.ModuleList(
            CrossSimilarityBlock(embed_dim, roles, **(similarity or {})) for _ in range(num_levels)
        )
        self.encoder = TokenEncoder(
            num_levels * num_tokens, embed_dim, num_classes, depth, num_heads, drop, attention_drop
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Turn tokens (B, R, L*N, C) into logits (B, R, K), features (B, R, C), attention.

        Attention is (B, R, L, N), or None for dot-product attention.
        """
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
        return logits.unflatten(0, group), features.unflatten(0, group), attention


class QCSNetwork(nn.Module):
    """Base branch for every role and, in training, the cross module between them.

    Args:
        backbone: see `BaseBranch`.
        num_classes: K.
        roles: 1 (plain classifier), 2 (DCS: anchor, positive) or 4 (QCS: and two negatives).
        input_size, embed_dim, grid, num_heads: see the parts; heads serve both encoders.
        base: depth, drop, attention_drop of the base branch's encoder; landmarks, see
            `BaseBranch`.
        cross: arguments of `CrossModule` that are a choice: depth, drop, attention_drop,
            residual, similarity. None leaves the module out (its ablation).

    Raises:
        UserError: a number of roles that is not 1, 2 or 4; a cross module for one role; an
            embed_dim that the heads do not divide; a backbone that does not fit.
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
            levels = len(backbone.feature_info.channels())
            self.cross = CrossModule(
                roles, levels, grid**2, embed_dim, num_classes, num_heads=num_heads, **cross
            )

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) with the base branch: logits (B, K)."""
        return self.base(images)[0]

    def compare(self, images: Tensor, groups: Tensor | None = None) -> Comparison:
        """Classify groups (B, R, 3, H, W) with both halves; for training and for pictures.

        Args:
            images: groups of faces.
            groups: (G, R) positions in their flattened (B, R): the groups to compare where images
                are in several. The base branch takes each image once; what returns has G for B.

        Raises:
            UserError: the group has another number of roles than the network.
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
