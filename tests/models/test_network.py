import itertools

import pytest
import timm
import torch

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.models import IR, QCSNetwork

SIMILARITY = [
    {"mode": mode, "extremes": extremes, "residual": residual}
    for mode, extremes, residual in itertools.product(
        ("both", "similarity", "distance", "dot"), ("batch", "sample"), ("normed", "prenorm")
    )
]


def backward(network: QCSNetwork, size: int = 16) -> None:
    images = torch.randn(3, network.roles, 3, size, size)
    out = network.compare(images)
    logits = [x for x in (out.base_logits, out.cross_logits) if x is not None]
    sum(x.pow(2).sum() for x in logits).backward()


@pytest.mark.parametrize("roles", [1, 2, 4])
@pytest.mark.parametrize("num_classes", [7, 8])
def test_shapes(roles, num_classes):
    network = tiny_network(roles, num_classes)
    out = network.compare(torch.randn(3, roles, 3, 16, 16))
    assert network(torch.randn(5, 3, 16, 16)).shape == (5, num_classes)
    assert out.base_logits.shape == (3, roles, num_classes)
    assert out.base_features.shape == (3, roles, 16)
    if roles == 1:
        assert out.cross_logits is None and out.attention is None
    else:
        assert out.cross_logits.shape == (3, roles, num_classes)
        assert out.attention.shape == (3, roles, 2, 4)
        torch.testing.assert_close(out.attention.sum(-1), torch.ones(3, roles, 2))


@pytest.mark.parametrize(
    "roles,residual,similarity",
    [
        (roles, residual, similarity)
        for roles, residual in [(4, True), (4, False), (2, True)]
        for similarity in SIMILARITY
        if (roles, similarity["mode"]) != (2, "distance")  # refused, see test_similarity
    ],
)
def test_every_parameter_gets_a_gradient(roles, residual, similarity):
    network = tiny_network(roles, cross={"residual": residual, "similarity": similarity})
    backward(network)
    unreached = [n for n, p in network.named_parameters() if p.grad is None]
    assert unreached == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_without_cross_residual_no_gradient_of_the_cross_loss_is_lost():
    network = tiny_network(cross={"residual": False})
    network.compare(torch.randn(2, 4, 3, 16, 16)).cross_logits.sum().backward()
    assert network.base.backbone.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("roles", [2, 4])
def test_images_in_several_groups_pass_the_base_once_and_are_compared_as_if_repeated(roles):
    network = tiny_network(roles).eval().double()
    images, seen = torch.randn(3, roles, 3, 16, 16, dtype=torch.double), []
    network.base.backbone.stem.register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    groups = torch.tensor([[0, 3, 2, 1], [4, 1, 5, 0], [2, 5, 1, 3], [0, 1, 4, 2]])[:, :roles]
    out = network.compare(images, groups)
    assert sum(seen) == 3 * roles
    repeated = network.compare(images.flatten(0, 1)[groups])
    for one, other in zip(out, repeated, strict=True):
        torch.testing.assert_close(one, other)


def test_base_logits_stay_when_the_cross_module_is_deleted():
    network = tiny_network().eval()
    images = torch.randn(2, 3, 16, 16)
    before = network(images)
    network.cross = None
    torch.testing.assert_close(network(images), before, atol=0, rtol=0)


def test_training_normalises_each_role_by_itself():
    """BatchNorm counts one batch a role, and a role's logits do not see the other roles."""
    network = tiny_network(4, cross=None)
    images = torch.randn(4, 4, 3, 16, 16)
    out = network.compare(images).base_logits
    assert network.base.backbone.stem[1].num_batches_tracked == 4
    images[:, 1:] = images[:, 1:] * 3 + 1
    torch.testing.assert_close(network.compare(images).base_logits[:, 0], out[:, 0])


def test_evaluation_does_not_depend_on_grouping():
    network = tiny_network().eval()
    images = torch.randn(3, 4, 3, 16, 16)
    grouped = network.compare(images).base_logits
    torch.testing.assert_close(grouped, network(images.flatten(0, 1)).unflatten(0, (3, 4)))


def test_larger_images_are_subsampled_by_nearest_neighbour():
    network = tiny_network().eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), network(images[..., ::2, ::2]), atol=0, rtol=0)


@pytest.mark.parametrize(
    "name,grid",
    [
        ("resnet18", 4),
        ("mobilenetv3_small_100", 4),
        ("efficientnet_b0", 4),
        ("convnext_atto", 2),
        ("regnety_002", 4),
        ("test_vit", 4),
    ],
)
def test_timm_backbones_fit_and_every_parameter_is_reached(name, grid):
    backbone = timm.create_model(name, features_only=True, out_indices=(0, 1, 2))
    before = [m.detach() for m in backbone.eval()(torch.ones(1, 3, 64, 64))]
    network = tiny_network(backbone=backbone, input_size=64, grid=grid)
    for old, new in zip(before, network.eval().base.maps(torch.ones(1, 3, 64, 64)), strict=True):
        torch.testing.assert_close(new, old)
    backward(network.train(), 64)
    assert all(p.grad is not None for p in network.parameters())


def test_a_backbone_with_parts_that_its_maps_do_not_use_is_refused():
    backbone = timm.create_model("hrnet_w18_small", features_only=True, out_indices=(0, 1, 2))
    with pytest.raises(UserError, match="out_indices"):
        tiny_network(backbone=backbone, input_size=64, grid=4)


@pytest.mark.parametrize(
    "options,sentence",
    [
        ({"grid": 3}, "does not bring to the 3x3 tokens of model.grid=3"),
        ({"roles": 3}, "model.roles is 1"),
        ({"roles": 1, "cross": {}}, "model.cross=null"),
        ({"num_heads": 3}, "model.num_heads=3"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_network(**options)


def test_a_backbone_that_is_not_nchw_is_refused():
    class ChannelsLast(IR):
        def forward(self, images):
            return [m.permute(0, 2, 3, 1) for m in super().forward(images)]

    with pytest.raises(UserError, match="expected \\(batch, channel"):
        tiny_network(backbone=ChannelsLast((1, 1), (8, 16)), input_size=16)


def test_dropout_places():
    network = tiny_network(base={"drop": 0.2}, cross={"drop": 0.5, "attention_drop": 0.4})
    for half, drop, attention in ((network.base, 0.2, 0.0), (network.cross, 0.5, 0.4)):
        for block in half.encoder.blocks:
            assert (block.mlp.drop1.p, block.mlp.drop2.p) == (drop, drop)
            assert block.attn.proj_drop.p == attention
        assert half.encoder.pos_drop.p == drop


def test_ir50_speaks_the_features_only_protocol():
    backbone = IR()
    assert backbone.feature_info.channels() == [64, 128, 256]
    assert backbone.feature_info.reduction() == [2, 4, 8]
    with pytest.raises(UserError, match="backbone.units"):
        IR(units=(1, 2), channels=(8,))


def test_a_network_can_be_built_where_no_gradient_is_taken():
    with torch.no_grad():
        built = tiny_network()
    assert sum(p.numel() for p in built.parameters()) == sum(
        p.numel() for p in tiny_network().parameters()
    )


@pytest.mark.parametrize("roles", [2, 4])
def test_shuffled_partners_are_those_of_other_groups(roles):
    """Face r of group b is compared with face k of group b + r - k, and keeps its own place."""
    cross = {"similarity": {"extremes": "sample"}}
    torch.manual_seed(0)
    network = tiny_network(roles, cross=cross).eval()
    control = tiny_network(roles, cross=cross | {"partners": "shuffled"}).eval()
    control.load_state_dict(network.state_dict())
    images = torch.randn(5, roles, 3, 16, 16)
    mixed = torch.stack(
        [torch.stack([images[(g - k) % 5, k] for k in range(roles)]) for g in range(5)]
    )
    got, own, expected = (f(x) for f, x in (
        (control.compare, images), (network.compare, images), (network.compare, mixed)
    ))  # fmt: skip
    torch.testing.assert_close(got.base_logits, own.base_logits)
    for field in ("cross_logits", "cross_features", "attention"):
        for b, r in itertools.product(range(5), range(roles)):
            there = getattr(expected, field)[(b + r) % 5, r]
            torch.testing.assert_close(getattr(got, field)[b, r], there)
