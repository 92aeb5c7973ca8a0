"""Where a trained network looks: the base branch's class token, and the maps between faces.

B batch, M faces, L levels, N tokens of a level.
"""

import torch
from torch import Tensor

from qcs.config.errors import UserError
from qcs.models import QCSNetwork
from qcs.models.cross_similarity import spread, token_distances


@torch.no_grad()
def class_token_attention(network: QCSNetwork, images: Tensor) -> Tensor:
    """What the class token attends to in the base branch's last block, the mean of the heads.

    Args:
        network: in eval mode.
        images: (B, 3, H, W), transformed.

    Returns:
        (B, L, N) float32; the values of an image sum to 1, its class token's own share left out.
    """
    taken: list[Tensor] = []
    attention = network.base.encoder.blocks[-1].attn
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
    """Cross similarity attention of each face towards each other one.

    As in training, but with the extremes of the pair alone, so that a map depends on nothing else.

    Args:
        network: in eval mode, with a cross module.
        images: (M, 3, H, W), transformed; two or more.
        same: (M, M), whether two faces are treated as of one class, where what they share is
            weighed; else what tells them apart. All by default.

    Returns:
        (M, M, L, N) float32: [i, j] is of face i compared with face j, and sums to 1 a level.

    Raises:
        UserError: a network without cross similarity attention, or fewer than two faces.
    """
    number = len(images)
    blocks = () if network.cross is None else network.cross.attention
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
    levels = []
    for block, x in zip(blocks, tokens, strict=True):
        queries = block.proj(block.norm1(x)).chunk(2, dim=-1)[0]
        d = token_distances(queries[:, None], queries[None])  # (M, M, N, N)
        shared, apart = d.amax((2, 3), keepdim=True) - d, d - d.amin((2, 3), keepdim=True)
        score = spread(torch.where(same[:, :, None, None], shared, apart))[0]
        levels.append(score.softmax(-1))
    return torch.stack(levels, dim=2)
