"""Where a network looks, against plain computations."""

import pytest
import torch

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.models.attention_maps import class_token_attention, pair_maps
from qcs.models.cross_similarity import cross_similarity


def images(number: int) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_class_tokens_attention_is_that_of_the_block():
    network = tiny_network(base={"depth": 2}).eval()
    block = network.base.encoder.blocks[-1]
    seen = {}
    block.attn.fused_attn = False  # timm then makes the weights, which its dropout layer sees
    block.attn.attn_drop.register_forward_hook(lambda m, i, out: seen.update(weights=out))
    network(images(3))
    weights = seen["weights"].mean(1)[:, 0, 1:]  # of the class token, without its own
    expected = weights / weights.sum(1, keepdim=True)
    block.attn.fused_attn = True
    got = class_token_attention(network, images(3))
    torch.testing.assert_close(got.flatten(1), expected, atol=1e-6, rtol=1e-5)
    assert got.shape == (3, 2, 4)  # two levels of four tokens
    torch.testing.assert_close(got.sum((1, 2)), torch.ones(3))


def test_the_network_is_left_as_it_was():
    network = tiny_network().eval()
    before = network(images(2))
    class_token_attention(network, images(2))
    with pytest.raises(RuntimeError):
        class_token_attention(network, images(2)[:, :2])
    assert not network.base.encoder.blocks[-1].attn._forward_pre_hooks
    assert torch.equal(network(images(2)), before)


def test_pair_maps_are_the_attention_of_pairs():
    network, faces = tiny_network().eval(), images(4)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    maps = pair_maps(network, faces, same)
    assert maps.shape == (4, 4, 2, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 4, 2))
    levels = network.base(faces)[2].detach().chunk(2, dim=1)
    for level, (block, x) in enumerate(zip(network.cross.attention, levels, strict=True)):
        queries = block.proj(block.norm1(x)).chunk(2, dim=-1)[0].detach()
        shared = cross_similarity(queries[[0, 1]][None], "similarity")[0]
        torch.testing.assert_close(maps[0, 1, level], shared[0])
        torch.testing.assert_close(maps[1, 0, level], shared[1])
        # Roles 0 and 2 of a group are of other classes; with these four, each pair is its own.
        apart = cross_similarity(queries[[2, 2, 3, 3]][None], "distance")[0]
        torch.testing.assert_close(maps[2, 3, level], apart[0])
        torch.testing.assert_close(maps[3, 2, level], apart[2])


def test_a_map_depends_on_its_pair_alone():
    network, faces = tiny_network().eval(), images(5)
    torch.testing.assert_close(
        pair_maps(network, faces)[:2, :2], pair_maps(network, faces[:2]), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    "options", [{"roles": 1}, {"cross": None}, {"cross": {"similarity": {"mode": "dot"}}}]
)
def test_without_cross_similarity_there_are_no_maps(options):
    with pytest.raises(UserError, match="without cross similarity attention"):
        pair_maps(tiny_network(**options).eval(), images(2))
