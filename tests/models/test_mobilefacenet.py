"""MobileFaceNet as a backbone; its numbers are held by tests/test_poster.py, which contains it."""

import pytest
import torch
from safetensors.torch import save_file
from timm import create_model

from qcs.checkpoints.load import load_checkpoint
from qcs.checkpoints.pretrained import load_backbone
from qcs.config.errors import UserError
from qcs.models import MobileFaceNet, QCSNetwork
from qcs.training.losses import QCSLoss


def test_it_answers_like_timms_features_only():
    backbone = MobileFaceNet((0, 1, 2, 3))
    maps = backbone(torch.rand(2, 3, 112, 112))
    info = backbone.feature_info
    assert [m.shape[1] for m in maps] == info.channels() == [64, 64, 128, 512]
    assert [112 // m.shape[2] for m in maps] == info.reduction() == [2, 4, 8, 16]
    assert sum(p.numel() for p in backbone.parameters()) == 911_232  # as the published trunk
    theirs = create_model("resnet18", features_only=True, out_indices=[1])
    assert set(dir(backbone.feature_info)) == set(dir(theirs.feature_info))


@pytest.mark.parametrize("indices", [(1, 2, 3), (1, 2)])
def test_every_parameter_learns_with_any_maps(indices):
    """What lies behind the last chosen map is left out."""
    network = QCSNetwork(
        MobileFaceNet(indices), 3, input_size=48, embed_dim=16, grid=3, num_heads=2, cross={}
    )
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 0, 0]])
    QCSLoss()(network.compare(torch.randn(2, 4, 3, 48, 48)), labels)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_map_that_it_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"backbone\.out_indices are of 0, 1, 2, 3, got \[4\]"):
        MobileFaceNet([4])


def test_a_face_networks_file_fits_whole(tmp_path, caplog):
    """Files have no counters of batches, and an embedding that is left out."""
    there, here = MobileFaceNet(), MobileFaceNet()
    state = {k: v + 1 for k, v in there.state_dict().items() if "num_batches" not in k}
    save_file(state | {"linear1.conv.weight": torch.zeros(3)}, tmp_path / "face.safetensors")
    with caplog.at_level("INFO"):
        load_backbone(here, tmp_path / "face.safetensors")
    assert all(torch.equal(here.state_dict()[k], v) for k, v in state.items())
    assert "left out 1 of other parts" in caplog.text and "not in the file" not in caplog.text


def test_a_network_of_the_zoo_fits_whole(caplog):
    ours = MobileFaceNet([1, 2, 3])
    with caplog.at_level("INFO"):
        load_backbone(ours, "ferplus-light")
    stored = load_checkpoint("ferplus-light").network.base.backbone.state_dict()
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in stored.items())
    assert f"took {len(stored)} of {len(stored)} tensors" in caplog.text
    with pytest.raises(UserError, match="no file at backbone.weights=ferplus-lite.*`qcs zoo`"):
        load_backbone(ours, "ferplus-lite")
