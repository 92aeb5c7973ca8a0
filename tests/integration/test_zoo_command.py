"""The networks of `qcs zoo` as a user meets them: without a checkpoint, in any folder."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from test_train import qcs

from conftest import tiny_checkpoint
from qcs.checkpoints import zoo
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.zoo import main
from test_main import HEAVY, python

NAME = zoo.default()


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """An astronaut smiles (NASA, public domain), 512 pixels."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def test_a_photo_gets_a_label_without_a_checkpoint(photo):
    done = qcs("predict", "photo.jpg", "annotate=true", "hydra.run.dir=run", cwd=photo.parent)
    (row,) = map(json.loads, (photo.parent / "run/predictions.jsonl").read_text().splitlines())
    assert row["label"] == "Happiness" and row["probability"] > 0.5
    told = done.stdout + done.stderr
    assert f"network {NAME}" in told and "1 image, 1 face (Happiness 1): " in told
    assert "photo.jpg: Happiness 100 %, left 18" in told
    assert f"picture {photo.parent / 'run/annotated/photo.jpg'}" in told


def test_two_lines_of_python_do_the_same(photo):
    done = python(f"import qcs; print(qcs.load().predict({str(photo)!r})[0][0].label)")
    assert done.stdout.splitlines()[-1:] == ["Happiness"], done.stderr


def test_the_table_tells_of_each_network(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main([])
    text = capsys.readouterr().out
    for name, about in zoo.index()["networks"].items():
        (line,) = [row for row in text.splitlines() if row.startswith(f"{name}  ")]
        assert about["files"]["safetensors"]["sha256"][:12] in line
        assert f"{100 * about['test']['acc']:.2f} (" in line
        told = " ".join(text.split())
        for part in (about["licence"], about["command"], ", ".join(about["class_names"])):
            assert part in told
        assert "research use recommended" in told
    assert max(map(len, text.splitlines())) <= 100


def test_a_name_that_there_is_not_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        main(["ferplus-lite"])
    assert f"there are {NAME}" in capsys.readouterr().err


def test_the_table_needs_no_library():
    code = "import sys, qcs_fer; sys.argv = ['qcs', 'zoo']; qcs_fer.main(); print(*sys.modules)"
    done = python(code)
    heavy = HEAVY - {"importlib.metadata"}  # looks for another library of our name
    assert NAME in done.stdout and not heavy & set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def script():
    """scripts/release_network.py as a module."""
    place = CONF.parent / "scripts/release_network.py"
    spec = importlib.util.spec_from_file_location("release_network", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_statistics_of_a_mean_are_those_of_its_images(tmp_path, faces, script):
    """Estimated anew, whatever they were before, and nothing else of the network changes."""
    tiny_checkpoint(tmp_path / "last.ckpt")
    one, other = (script.inference([load_checkpoint(tmp_path / "last.ckpt")]) for _ in range(2))
    moved = {name: x for name, x in other.network.named_buffers() if "running" in name}
    for tensor in moved.values():
        tensor.add_(1)
    for checkpoint in (one, other):
        script.estimate_statistics(checkpoint, faces, 12)
    before = load_checkpoint(tmp_path / "last.ckpt").network.state_dict()
    for name, tensor in one.network.state_dict().items():
        torch.testing.assert_close(tensor, other.network.state_dict()[name])
        same = torch.equal(tensor, before[name])
        assert same == (not ("running" in name or "num_batches" in name)), name
    assert not one.network.training
    with pytest.raises(UserError, match="--statistics 1000: there are [0-9]+ training images"):
        script.estimate_statistics(one, faces, 1000)


def test_a_release_is_checked_and_measured(tmp_path, faces_table, monkeypatch, script):
    monkeypatch.setattr(script, "RESAMPLES", 50)
    tiny_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "zoo").mkdir()
    options = ["best.ckpt", "tiny", str(faces_table), "--command", "qcs train", "--calibrate"]
    options += ["--folder", str(tmp_path / "zoo"), "--card", "card.md", "--statistics", "12"]
    monkeypatch.setattr(sys, "argv", ["release_network.py", *options])
    monkeypatch.chdir(tmp_path)
    script.main()
    index = zoo.index(tmp_path / "zoo")
    entry = index["networks"]["tiny"]
    assert index["default"] == "tiny" and entry["test"]["images"] == 9
    forms = entry["forms"]
    assert {forms[f]["acc"] for f in ("float32", *zoo.KINDS)} == {entry["test"]["acc"]}
    assert set(forms) == {"float32", *zoo.KINDS, "int8"}
    assert max(entry["differences"].values()) < 0.005 and entry["temperature"] != 1
    network = load_checkpoint(tmp_path / "zoo/tiny.safetensors").network
    assert network.roles == 1 and network.cross is None
    card = (tmp_path / "card.md").read_text()
    assert "| tiny.onnx, float16 | " in card and "| ONNX, int8 (not shipped) | " in card
    assert "| red | 3 | " in card
