"""`backbone.weights`: layouts of files, what does not fit, and files that name code to run."""

import functools
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_options import config
from torch import nn

from conftest import tiny_network
from qcs.checkpoints import recipe
from qcs.checkpoints.matching import match
from qcs.checkpoints.pretrained import StandIn, load_backbone, read_state_dict
from qcs.config.errors import UserError
from qcs.data.datamodule import FaceDataModule
from qcs.models import IR
from qcs.train import train
from qcs.training import build
from qcs.training.sam import frozen_statistics

UNITS, CHANNELS = (2, 1, 2), (8, 12, 16)


def backbone(seed: int = 0) -> IR:
    torch.manual_seed(seed)
    net = IR(UNITS, CHANNELS)
    for buffer in net.buffers():
        buffer.random_(1, 9)
    return net


def arcface(net: IR) -> dict[str, torch.Tensor]:
    """The backbone as a face recognition's file holds it, with a fourth stage and an embedding."""
    rename = lambda k: re.sub(r"stage(\d\.\d+)\.", r"body\1.", k.replace("stem.", "input_layer."))  # noqa: E731
    names = {rename(k): v for k, v in net.state_dict().items()}
    names = {
        k.replace(".residual.", ".res_layer.").replace(".shortcut.", ".shortcut_layer."): v
        for k, v in names.items()
    }
    extras = (
        "body4.0.res_layer.1.weight",
        "body4.0.shortcut_layer.0.weight",
        "output_layer.3.bias",
    )
    return names | {k: torch.zeros(3) for k in extras}


def in_one_sequence(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ArcFace's older form: `body.N`, over all stages."""
    first = {"1": 0, "2": 2, "3": 3, "4": 5}
    rename = lambda m: f"body.{first[m[1]] + int(m[2])}."  # noqa: E731
    return {re.sub(r"^body(\d)\.(\d+)\.", rename, k): v for k, v in state.items()}


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{k}": v for k, v in state.items()}


LAYOUTS = {
    "arcface": lambda net: arcface(net),
    "arcface, DataParallel": lambda net: {"state_dict": prefixed("module.", arcface(net))},
    "arcface, one sequence": lambda net: in_one_sequence(arcface(net)),
    "the authors'": lambda net: {
        "epoch": 3,
        "state_dict": prefixed("module.", prefixed("ir_back.", arcface(net)))
        | {"module.conv1.bias": torch.zeros(2), "module.VIT_base.cls_token": torch.zeros(1)},
        "best_acc": torch.tensor(88.0),
    },
    "a run's checkpoint": lambda net: {
        "state_dict": prefixed("network.base.backbone.", net.state_dict())
        | {"network.base.encoder.head.bias": torch.zeros(7)},
        "qcs": {},
    },
    "a network": lambda net: prefixed("base.backbone.", net.state_dict()),
    "a backbone": lambda net: dict(net.state_dict()),
}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backbone_is_taken_out_of_every_layout(layout, tmp_path, caplog):
    theirs, ours = backbone(1), backbone(2)
    torch.save(LAYOUTS[layout](theirs), tmp_path / "file.pth")
    with caplog.at_level(logging.INFO):
        load_backbone(ours, tmp_path / "file.pth")
    assert same(ours, theirs)
    assert [r.levelname for r in caplog.records] == ["INFO"]  # extras are counted, in one line
    extras = {"arcface": 3, "the authors'": 5, "a run's checkpoint": 1, "a backbone": 0}
    if layout in extras:
        assert f"left out {extras[layout]} of other parts" in caplog.text


def test_safetensors_and_the_format_before_zip_files(tmp_path):
    theirs = backbone(1)
    save_file(arcface(theirs), tmp_path / "file.safetensors")
    old = tmp_path / "old.pth"
    torch.save({"state_dict": theirs.state_dict()}, old, _use_new_zipfile_serialization=False)
    for path in (tmp_path / "file.safetensors", old):
        ours = backbone(2)
        load_backbone(ours, path)
        assert same(ours, theirs)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_timms_own_state_dicts(name, tmp_path, caplog):
    """Feature extractors have other names than whole networks (`stages_0`), and end earlier."""
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "timm.pth")
    network = tiny_network(
        backbone=timm.create_model(name, features_only=True, out_indices=(1, 2)),
        **({"input_size": 64, "grid": 2}),
    )
    part = network.base.backbone
    load_backbone(part, tmp_path / "timm.pth")
    plain = {k.replace(".", "_"): v for k, v in whole.state_dict().items()}
    assert all(torch.equal(v, plain[k.replace(".", "_")]) for k, v in part.state_dict().items())
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_what_does_not_match_is_named(tmp_path, caplog):
    theirs, ours = backbone(1), backbone(2)
    state = theirs.state_dict()
    del state["stage2.0.shortcut.0.weight"]
    state["stage3.1.residual.1.weight"] = torch.zeros(4, 4, 3, 3)
    state["stage1.7.residual.0.weight"] = torch.zeros(8)  # of a deeper network
    state["stage9.0.residual.0.weight"] = torch.zeros(8)
    torch.save(state, tmp_path / "file.pth")
    kept = ours.stage2[0].shortcut[0].weight.clone()
    with caplog.at_level(logging.INFO):
        load_backbone(ours, tmp_path / "file.pth")
    missing, shape, inside, count = (r.getMessage() for r in caplog.records)
    assert "1 tensors not in the file" in missing and "stage2.0.shortcut.0.weight" in missing
    assert "stage3.1.residual.1.weight (16, 16, 3, 3) is (4, 4, 3, 3) there" in shape
    assert "stage1.7.residual.0.weight" in inside and "stage9" not in inside
    assert "left out 1 of other parts" in count
    assert torch.equal(ours.stage2[0].shortcut[0].weight, kept)
    assert torch.equal(ours.stem[0].weight, theirs.stem[0].weight)


def test_files_without_batch_counters_are_not_complained_about():
    state = {k: v for k, v in backbone().state_dict().items() if not k.endswith("_tracked")}
    assert match(backbone(), state).missing == []


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"fits 0 of .* stem.0.weight.* conv1.weight"):
        load_backbone(backbone(), tmp_path / "resnet.pth")
    torch.save(IR(UNITS, (4, 6, 8)).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"stem.0.weight \(8, 3, 3, 3\) is \(4, 3, 3, 3\) there"):
        load_backbone(backbone(), tmp_path / "narrow.pth")


# -- reading -----------------------------------------------------------------------------

TRAINER = """
import numpy as np, torch

class RecorderMeter:
    def __init__(self, epochs):
        self.losses = np.zeros((epochs, 2), dtype=np.float32)
        self.best, self.name = np.float64(88.5), "run"

net = torch.nn.Linear(2, 2)
torch.save({
    "epoch": 3,
    "state_dict": torch.nn.DataParallel(net).state_dict(),
    "best_acc": torch.tensor(88.5),
    "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
    "recorder": RecorderMeter(4),
    "recorder1": RecorderMeter(4),
}, "training.pth")
"""


def test_a_training_file_with_its_own_objects_is_read(tmp_path):
    """As the authors save theirs: a recorder of `__main__`, which holds numpy arrays."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRAINER], cwd=tmp_path, env=env, check=True)
    weights = read_state_dict(tmp_path / "training.pth")
    assert set(weights.state_dict) == {"module.weight", "module.bias"}
    content = weights.content
    assert content["epoch"] == 3 and content["best_acc"] == 88.5 and "optimizer" in content
    assert isinstance(content["recorder"], StandIn)
    state = content["recorder"].state
    assert state["losses"].shape == (4, 2) and state["best"] == 88.5 and state["name"] == "run"


def test_names_of_numpy_1_are_read(tmp_path):
    torch.save({"a": torch.ones(1), "n": np.arange(3.0)}, tmp_path / "two.pth")
    with (
        zipfile.ZipFile(tmp_path / "two.pth") as old,
        zipfile.ZipFile(tmp_path / "one.pth", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy._core" in (tmp_path / "two.pth").read_bytes()
    content = read_state_dict(tmp_path / "one.pth").content
    assert content["n"].tolist() == [0, 1, 2]


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function,args,name",
    [
        (os.system, ("touch hacked",), "system"),
        (eval, ("open('hacked', 'w')",), "eval"),
        (functools.partial, (os.system, "touch hacked"), "partial"),
        (subprocess.Popen, (["touch", "hacked"],), "Popen"),
        (np.fromfile, ("/etc/hostname",), "fromfile"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_calls_something_is_refused(
    function, args, name, zipped, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"a": torch.ones(1)}, "recorder": Call(function, *args)}
    torch.save(content, "file.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"names .*{re.escape(name)}") as error:
        read_state_dict("file.pth")
    assert "\n" not in str(error.value) and not Path("hacked").exists()


def test_a_stand_in_runs_nothing_of_this_process(tmp_path, monkeypatch):
    """A name in `__main__`, or in a package that is not here, is never looked up."""
    monkeypatch.setattr(sys.modules["__main__"], "danger", lambda *a: 1 / 0, raising=False)
    pickled = b"\x80\x02}X\x01\x00\x00\x00ac__main__\ndanger\nX\x01\x00\x00\x00b\x85Rs."
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "file.pth", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_state_dict(tmp_path / "file.pth")


def _broken(folder: Path) -> dict[str, bytes]:
    torch.save({"a": torch.ones(1000)}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    save_file({"a": torch.ones(1000)}, folder / "whole.safetensors")
    return {
        "half.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"<!DOCTYPE html>",
        "zip.pth": b"PK\x03\x04 and nothing",
        "number.pth": pickle.dumps(3),
        "half.safetensors": (folder / "whole.safetensors").read_bytes()[:500],
        "text.safetensors": b"<!DOCTYPE html>",
    }


def test_a_broken_file_is_one_sentence(tmp_path):
    for name, data in _broken(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name) as error:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(error.value) and "weights_only" not in str(error.value), name
    with pytest.raises(UserError, match="nowhere.pth"):
        read_state_dict(tmp_path / "nowhere.pth")


# -- in a run ----------------------------------------------------------------------------

SMALL = ("model.embed_dim=16", "model.num_heads=2", "model.grid=4", "backbone.channels=[8,12,16]")


def module(tmp_path, faces, *overrides):
    return build.module(config(tmp_path, *overrides), FaceDataModule(faces, None, None))


def test_a_run_starts_from_the_file_and_its_checkpoint_needs_it_no_more(tmp_path, faces):
    theirs = IR((1, 1, 2), (8, 12, 16), stem_stride=2)
    torch.save(arcface(theirs), tmp_path / "file.pth")
    run = module(tmp_path, faces, *SMALL, f"backbone.weights={tmp_path / 'file.pth'}")
    assert same(run.network.base.backbone, theirs)
    (tmp_path / "file.pth").unlink()
    assert "file.pth" not in str(run.recipe)
    assert same(recipe.network(run.recipe).base.backbone, IR((1, 1, 2), (8, 12, 16), 2)) is False


def test_a_run_that_may_go_on_starts_from_the_file_where_there_is_nothing(tmp_path, faces_table):
    data = ("dataset=csv", f"dataset.path={faces_table}")
    given = config(tmp_path, *data, "ckpt=auto", "backbone.weights=nowhere.pth")
    with pytest.raises(UserError, match="backbone.weights=nowhere.pth"):
        train(given)


def test_timms_pretrained_weights_reach_the_network(tmp_path, faces, monkeypatch):
    asked = []
    create = timm.create_model

    def record(*args, pretrained=False, **options):
        asked.append(pretrained)
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", record)
    options = ("backbone=timm", "backbone.pretrained=true", "model.grid=4")
    run = module(tmp_path, faces, *options)
    assert asked == [True] and run.recipe["backbone"]["pretrained"] is False


@pytest.mark.parametrize(
    "override,sentence",
    [
        ("backbone.weights=3", "backbone.weights=3 should be a valid string"),
        (
            "backbone.grad_checkpointing=1",
            "backbone.grad_checkpointing=1 should be a valid boolean",
        ),
        (
            "+backbone.wieghts=a",
            "backbone.wieghts is not an option, did you mean backbone.weights?",
        ),
    ],
)
def test_a_mistake_in_the_backbone_is_one_sentence(override, sentence, tmp_path):
    with pytest.raises(UserError, match=re.escape(sentence)):
        config(tmp_path, override)


# -- gradient checkpointing --------------------------------------------------------------


def gradients(network: nn.Module, images: torch.Tensor) -> tuple[list, list]:
    out = network.train().compare(images)
    loss = out.base_logits.square().sum() + out.cross_logits.square().sum()
    with frozen_statistics(network):
        loss.backward()
    return [p.grad for p in network.parameters()], [b.clone() for b in network.buffers()]


@pytest.mark.parametrize("name", [None, "resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_recomputing_changes_neither_gradients_nor_statistics(name):
    results, options = [], {"features_only": True, "out_indices": (1, 2)}
    for recomputes in (False, True):
        torch.manual_seed(0)
        made = timm.create_model(name, **options) if name else None
        size = 64 if name else 16
        network = tiny_network(backbone=made, input_size=size, cross={}).double()
        if recomputes:
            build.enable_grad_checkpointing(network.base.backbone)
        images = torch.rand(2, 4, 3, size, size, dtype=torch.float64, generator=_seeded())
        results.append(gradients(network, images))
    (plain, statistics), (again, moved) = results
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(statistics, moved, strict=True))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_recomputing_runs_each_unit_twice_in_training_alone():
    net, runs = IR((1, 2), (8, 16)), []
    net.set_grad_checkpointing()
    net.stage2[1].register_forward_pre_hook(lambda *_: runs.append(1))
    sum(m.sum() for m in net(torch.rand(2, 3, 16, 16))).backward()
    assert len(runs) == 2
    with torch.no_grad():
        net(torch.rand(2, 3, 16, 16))
    assert len(runs) == 3


def test_statistics_are_put_back_and_an_error_does_not_keep_them():
    norm = nn.BatchNorm2d(2)
    with pytest.raises(KeyError), frozen_statistics(norm):
        norm(torch.rand(3, 2, 4, 4))
        raise KeyError
    assert norm.running_mean.tolist() == [0, 0] and norm.num_batches_tracked == 0
    norm(torch.rand(3, 2, 4, 4))
    assert norm.num_batches_tracked == 1


def test_a_run_that_recomputes_trains_as_one_that_does_not(tmp_path, faces):
    """Through SAM's two gradients and both settings of its second statistics."""
    from test_sam import fit

    batch = {
        "images": torch.rand(3, 4, 3, 16, 16, generator=_seeded()),
        "labels": torch.tensor([[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 0, 0]]),
    }
    for twice in (True, False):
        states = []
        for recomputes in (False, True):
            network = tiny_network()
            if recomputes:
                network.base.backbone.set_grad_checkpointing()
            sam = {"rho": 0.05, "update_bn_twice": twice}
            fit(network, [batch] * 2, tmp_path, sam=sam, grad_checkpointing=recomputes)
            states.append(network.state_dict())
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=0, atol=0, msg=key)


def test_a_backbone_that_cannot_recompute_is_one_sentence():
    with pytest.raises(UserError, match="Identity cannot be computed again"):
        build.enable_grad_checkpointing(nn.Identity())
