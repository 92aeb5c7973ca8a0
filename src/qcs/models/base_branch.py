"""The base branch: one face to logits, all that inference keeps of the network.

Source: Wang et al., "QCS", AAAI 2025, arXiv 2411.01988, figure 2.

B batch, R roles, L levels, N tokens of a level, C = embed_dim, K classes, H and W pixels. C_l, H_l
and W_l are the channels, height and width of the map of level l.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcs.models.backbones.feature_maps import map_channels, map_sizes
from qcs.models.batchnorm import set_roles
from qcs.models.landmarks import LandmarkBranch, LandmarkBranchOptions, LandmarkOptions
from qcs.models.tokens import EncoderOptions, PyramidTokens, TokenEncoder

# How the roles of a group pass through the backbone: one after the other, at once with BatchNorm
# statistics of each role, or at once with BatchNorm statistics over all roles.
RoleBatching = Literal["apart", "together", "joint"]


class BaseOptions(EncoderOptions, total=False):
    """The arguments of `BaseBranch` that a config may choose."""

    landmarks: LandmarkOptions | None


class BaseBranch(nn.Module):
    """Backbone, pyramid tokens and token encoder.

    Args:
        backbone: a module that answers like timm's `features_only`: its output is a list of maps
            (B, C_l, H_l, W_l), and its attribute `feature_info` describes them.
        num_classes: K.
        input_size: pixels a side of the images that the backbone sees. Other images are
            sub-sampled to it by nearest neighbour, as in the paper, which takes every second
            pixel of 224 to get 112.
        embed_dim: C.
        grid: tokens a side of each level, so N is grid * grid.
        depth, num_heads, drop, attention_drop: of the token encoder, see `TokenEncoder`.
        landmarks: arguments of `LandmarkBranch`; None builds the network without that branch. With
            the branch and a single role the network is POSTER++.

    Attributes:
        role_batching: how the roles pass through the backbone in training, see `compare`.

    Raises:
        UserError: the backbone's maps do not have the shapes (batch, channel, height, width), or
            do not fit the grid or the landmark maps.
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
        landmarks: LandmarkBranchOptions | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.backbone = input_size, backbone
        self.role_batching: RoleBatching = "apart"
        sizes = map_sizes(backbone, input_size)
        channels = map_channels(backbone)
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

        The maps of the landmark network follow, if there is one. Every BatchNorm of the network is
        applied in this method.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, size=self.input_size, mode="nearest")
        maps = self.backbone(images)
        return maps if self.landmarks is None else [*maps, *self.landmarks.net(images)]

    def _encode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Turn what `maps` returns into logits (B, K), features (B, C) and tokens (B, L*N, C)."""
        number = len(self.pyramid.sides)
        levels = self.pyramid.levels(maps[:number])
        if self.landmarks is not None:
            levels = self.landmarks(levels, maps[number:])
        return self.encoder(self.pyramid(levels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn images (B, 3, H, W) into logits (B, K), features (B, C) and tokens (B, L*N, C)."""
        if self.training and self.role_batching == "together":
            set_roles(self, 1)
        return self._encode(self.maps(images))

    def compare(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same for groups (B, R, 3, H, W), where every output has the role axis as well.

        In training, BatchNorm takes its statistics of each role separately, because the paper has
        four branches, one for each role. There are two ways to do so: with `role_batching`
        "apart" the roles pass through the backbone one after the other, with "together" they pass
        at once through `qcs.models.batchnorm`. "joint" is other mathematics: its statistics
        are taken over all roles. The token encoder has no BatchNorm and always takes all roles at
        once.
        """
        roles = images.transpose(0, 1)  # (R, B, 3, H, W)
        at_once = not self.training or self.role_batching == "joint"
        if at_once or (self.role_batching == "together" and set_roles(self, len(roles))):
            maps = self.maps(roles.flatten(0, 1))
        else:
            levels = zip(*(self.maps(x) for x in roles), strict=True)
            maps = [torch.cat(m) for m in levels]  # (R*B, C_l, H_l, W_l)
        logits, features, tokens = (
            x.unflatten(0, roles.shape[:2]).transpose(0, 1) for x in self._encode(maps)
        )
        return logits, features, tokens
