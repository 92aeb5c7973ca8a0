"""Weights from elsewhere: every layout, what does not match, and files that would run code."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import tiny_network
from qcs import weights
from qcs.models import IR
from qcs.sam import frozen_statistics

ARC = {"stem": "input_layer", "residual": "res_layer", "shortcut": "shortcut_layer"}


def arcface(state: dict, flat: list[int] | None = None, prefix: str = "") -> dict:
    """The keys that ArcFace's code gives an IR network, with a fourth stage and a head."""
    found = {}
    for key, value in state.items():
        parts = [ARC.get(p, p) for p in key.split(".")]
        if parts[0].startswith("stage"):
            stage = int(parts[0][5:])
            parts[0] = f"body{stage}"
            if flat:
                parts[:2] = ["body", str(sum(flat[: stage - 1]) + int(parts[1]))]
        found[prefix + ".".join(parts)] = value
    last = f"body.{sum(flat)}" if flat else "body4.0"
    extra = {f"{last}.res_layer.1.weight": torch.ones(3), "output_layer.3.weight": torch.ones(2)}
    return found | {prefix + k: v for k, v in extra.items()}


def backbone(seed: int) -> IR:
    torch.manual_seed(seed)
    return IR((2, 1), (8, 16))


def layouts(source: IR) -> dict[str, dict]:
    state = source.state_dict()
    ours = {f"network.base.backbone.{k}": v for k, v in state.items()}
    official = {k.replace("module.", "module.ir_back."): v
                for k, v in arcface(state, prefix="module.").items()}  # fmt: skip
    return {
        "plain": dict(state),
        "arcface": arcface(state),
        "module": {"state_dict": arcface(state, prefix="module."), "epoch": 3},
        "flat": arcface(state, flat=[2, 1]),
        "ours": {"state_dict": ours | {"network.base.encoder.cls_token": torch.ones(1)}, "qcs": {}},
        "official": {"state_dict": official | {"module.VIT_base.cls_token": torch.ones(1)}},
    }


@pytest.mark.parametrize("layout", ["plain", "arcface", "module", "flat", "ours", "official"])
def test_a_backbone_takes_its_weights_from_any_layout(layout, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, target = backbone(1), backbone(2)
    torch.save(layouts(source)[layout], tmp_path / "w.pth")
    weights.load_backbone(target, tmp_path / "w.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    others = 0 if layout == "plain" else 1 if layout == "ours" else 2
    assert f"; {others + (layout == 'official')} others" in caplog.text
    assert "WARNING" not in caplog.text


def test_safetensors_and_timm(tmp_path):
    import timm

    make = lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))  # noqa: E731
    source, target = timm.create_model("resnet18", num_classes=4), make()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    weights.load_backbone(target, tmp_path / "w.safetensors")
    assert torch.equal(target.state_dict()["layer3.1.bn2.weight"],
                       source.state_dict()["layer3.1.bn2.weight"])  # fmt: skip
    assert torch.equal(target.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])


def test_what_does_not_match_is_named_and_too_little_is_refused(tmp_path, caplog):
    state = dict(backbone(1).state_dict())
    state.pop("stem.1.bias")
    state["stage1.0.residual.1.weight"] = torch.ones(2, 2)
    torch.save(state, tmp_path / "some.pth")
    target = backbone(2)
    before = target.state_dict()["stem.1.bias"].clone()
    weights.load_backbone(target, tmp_path / "some.pth")
    assert "stem.1.bias is not in the file" in caplog.text
    assert "stage1.0.residual.1.weight is (2, 2), not (8, 8, 3, 3)" in caplog.text
    assert torch.equal(target.state_dict()["stem.1.bias"], before)
    torch.save({"encoder.weight": torch.ones(3), **dict(list(state.items())[:3])}, tmp_path / "few")
    with pytest.raises(ValueError, match=r"matches \d+ of the backbone's .* encoder.weight"):
        weights.load_backbone(target, tmp_path / "few")


OFFICIAL = """
import numpy as np, torch, sys
class RecorderMeter1:
    def __init__(self):
        self.losses = np.zeros((3, 2), dtype=np.float32)
        self.best = np.float64(0.5)
recorder = RecorderMeter1()
state = {"module.ir_back.input_layer.0.weight": torch.ones(2)}
torch.save({"epoch": 3, "state_dict": state, "best_acc": torch.tensor(92.5),
            "recorder": recorder, "recorder1": recorder}, sys.argv[1])
"""


def test_recorders_of_a_training_file_become_inert(tmp_path):
    path = tmp_path / "official.pth"
    subprocess.run([sys.executable, "-c", OFFICIAL, str(path)], check=True)
    content = weights.read(path)
    assert content["best_acc"] == 92.5 and content["epoch"] == 3
    assert isinstance(content["recorder"], weights.Inert)
    assert content["state_dict"]["module.ir_back.input_layer.0.weight"].shape == (2,)


class Hostile:
    """Pickled as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call", [(os.system, "touch hacked"), (eval, "open('hacked', 'w')"), (Path, "x"),
             (subprocess.Popen, ["touch", "hacked"])],
)  # fmt: skip
@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_that_would_run_code_is_refused(call, old_format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"x": torch.ones(2)}, "recorder": Hostile(*call)}
    torch.save(content, "bad.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match=r"bad\.pth"):
        weights.read("bad.pth")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
def test_what_is_no_file_of_weights_is_one_sentence(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth"):
        weights.read(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weights.read(tmp_path / "nothing.pth")


def test_gradient_checkpointing_changes_nothing_but_memory():
    found = []
    for again in (False, True):
        network = tiny_network(4).double().train()
        network.base.backbone.set_grad_checkpointing(again)
        images = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
        loss = network.compare(images).cross_logits.square().sum()
        with frozen_statistics(network):
            loss.backward()
        found.append([p.grad for p in network.parameters()] + list(network.buffers()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
