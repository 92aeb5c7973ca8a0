"""Attention maps of a trained network: of its class token, and of each face towards another.

B batch, M faces, L levels, N tokens of a level.
"""

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor

from qcs.config.errors import UserError
from qcs.models.cross_similarity import CrossSimilarityBlock, aggregate, token_distances
from qcs.models.network import QCSNetwork


@torch.no_grad()
def class_token_attention(network: QCSNetwork, images: Tensor) -> Tensor:
    """Compute how the class token attends to the others in the base branch's last block.

    Args:
        network: in eval mode.
        images: (B, 3, H, W), after the transform of the network.

    Returns:
        (B, L, N) float32, the mean over the heads. The attention of the class token to itself is
        left out, and the values of an image sum to 1.
    """
    taken: list[Tensor] = []
    block = network.base.encoder.blocks[-1]
    assert isinstance(block, Block) and isinstance(block.attn, Attention)
    attention = block.attn
    hook = attention.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        network(images)
    finally:
        hook.remove()
    x = taken[0].float()  # (B, 1 + L*N, C)
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, heads, 1 + L*N, C / heads)
    q, k = attention.q_norm(q), attention.k_norm(k)
    scores = (q[:, :, :1] @ k.mT).squeeze(2) * attention.scale  # (B, heads, 1 + L*N)
    shares = scores.softmax(-1).mean(1)[:, 1:]
    return (shares / shares.sum(1, keepdim=True)).unflatten(1, (-1, network.grid**2))


@torch.no_grad()
def pair_maps(network: QCSNetwork, images: Tensor, same: Tensor | None = None) -> Tensor:
    """Compute the cross similarity attention of each face towards each other face.

    In training the maximum and the minimum of the distances are taken over the batch. Here they
    are taken over the pair, so that a map depends on its two faces alone.

    Args:
        network: in eval mode, with a cross module.
        images: (M, 3, H, W), two faces or more, after the transform of the network.
        same: (M, M) booleans. Where True, the two faces are compared as faces of one class, and
            tokens that they share have a high score; where False, as faces of two classes, and
            tokens that tell them apart have one. None is True everywhere.

    Returns:
        (M, M, L, N) float32: [i, j] is the attention of face i compared with face j, and the N
        values of each level sum to 1.

    Raises:
        UserError: the network has no cross similarity attention, or there are fewer than two faces.
    """
    number = len(images)
    levels = () if network.cross is None else network.cross.attention
    blocks = [block for block in levels if isinstance(block, CrossSimilarityBlock)]
    if not blocks or any(block.mode == "dot" for block in blocks):
        raise UserError(
            "the network was trained without cross similarity attention (model=base, "
            "model.cross=null or mode=dot): maps between faces need model=dcs or model=qcs"
        )
    if number < 2:
        raise UserError(f"maps between faces need two faces or more, got {number}")
    if same is None:
        same = torch.ones(number, number, dtype=torch.bool, device=images.device)
    tokens = network.base(images)[2].float().chunk(len(blocks), dim=1)  # L of (M, N, C)
    maps = []
    for block, x in zip(blocks, tokens, strict=True):
        queries = block.proj(block.norm1(x)).chunk(2, dim=-1)[0]
        d = token_distances(queries[:, None], queries[None])  # (M, M, N, N)
        shared, apart = d.amax((2, 3), keepdim=True) - d, d - d.amin((2, 3), keepdim=True)
        score = aggregate(torch.where(same[:, :, None, None], shared, apart))[0]
        maps.append(score.softmax(-1))
    return torch.stack(maps, dim=2)
