"""The networks that come with the package: found by name, checked as they are opened."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image

import qcs
from conftest import tiny_network, tiny_recipe
from qcs.checkpoints import checksum, zoo
from qcs.checkpoints import safetensors as small
from qcs.checkpoints.load import load_checkpoint, load_classifier
from qcs.config.errors import UserError

NETWORKS = zoo.index()["networks"]
FILES = sorted(path for path in zoo.FOLDER.iterdir() if path.suffix[1:] in zoo.KINDS)
LARGEST, TOGETHER = 6_000_000, 12_000_000  # bytes


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """The zoo in a folder that may be changed."""
    folder = tmp_path / "zoo"
    shutil.copytree(zoo.FOLDER, folder)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    monkeypatch.setattr(zoo.index, "__defaults__", (folder,))
    return folder


@pytest.fixture
def face() -> Image.Image:
    """Of the astronaut, smiling, as FERPlus cuts faces."""
    return Image.fromarray(skimage.data.astronaut()).crop((164, 54, 284, 174)).convert("L")


# -- the files ---------------------------------------------------------------------------


def test_the_files_are_those_of_the_index_and_small():
    listed = {zoo.FOLDER / f"{name}.{kind}" for name in NETWORKS for kind in zoo.KINDS}
    assert set(FILES) == listed and zoo.default() in NETWORKS
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) < LARGEST and sum(sizes) < TOGETHER
    for path in FILES:
        about = NETWORKS[path.stem]["files"][path.suffix[1:]]
        assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["megabytes"] == pytest.approx(path.stat().st_size / 1e6, abs=1e-3)


@pytest.mark.parametrize("path", [*FILES, zoo.FOLDER / zoo.INDEX], ids=lambda p: p.name)
def test_no_file_tells_where_it_was_made(path):
    content = path.read_bytes()
    places = (Path.home(), Path(__file__).parents[2], Path("/home"), Path(tempfile.gettempdir()))
    assert not any(f"{place}/".encode() in content for place in places)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_files_are_the_same_network(name, face):
    torch_one, onnx_one = load_classifier(name), load_classifier(f"{name}.onnx")
    assert torch_one.class_names == onnx_one.class_names == tuple(NETWORKS[name]["class_names"])
    assert torch_one.recipe["model"]["cross"] is None and torch_one.recipe["format"] == 2
    assert {p.dtype for p in torch_one.network.parameters()} == {torch.float32}
    real = torch.stack([torch_one.transform(face), torch_one.transform(face).flip(-1)])
    images = torch.cat([real, torch.randn(8, *real.shape[1:])])
    with torch.no_grad():
        one, other = (c.network(images).softmax(1) for c in (torch_one, onnx_one))
    assert (one - other).abs().max() < 0.005
    assert torch_one.class_names[one[0].argmax()] == "Happiness"


# -- by name -----------------------------------------------------------------------------


def test_a_name_is_a_file_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = zoo.default()
    assert zoo.find(name) == zoo.default_file() == zoo.FOLDER / f"{name}.safetensors"
    assert zoo.find(Path(f"{name}.onnx")) == zoo.FOLDER / f"{name}.onnx"
    assert zoo.find("model.ckpt") is None and zoo.find(f"./{name}") is None
    assert qcs.load().class_names == qcs.load(name).class_names
    (tmp_path / name).mkdir()  # a run's folder, say
    assert zoo.find(name) == zoo.default_file()


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(zoo.default()).write_bytes(b"\0 something else")
    with pytest.raises(UserError, match="can be read safely"):
        qcs.load(zoo.default())
    assert qcs.load().class_names  # no name was given: it is the package's


@pytest.mark.parametrize("name", ["ferplus-lite", "FERPLUS-LIGHT", "x"])
@pytest.mark.parametrize("load", [load_checkpoint, load_classifier, qcs.load])
def test_an_unknown_name_lists_those_that_there_are(name, load):
    with pytest.raises(UserError, match=f"ckpt={name}.*ferplus-light.*the path of a file") as error:
        load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nowhere.ckpt", "folder/x", "/x", "~nobody/x"])
def test_a_path_is_no_name(path):
    assert zoo.find(path) is None and zoo.absent(path) is None


# -- damage ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ferplus-light", "ferplus-light.onnx"])
def test_a_changed_file_is_refused(name, copied):
    path = zoo.find(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for wanted in (name, path):  # by its path as well
        with pytest.raises(UserError, match=r"its SHA-256 is not that of zoo\.json: install"):
            load_classifier(wanted)
    moved = shutil.copy(path, copied.parent / path.name)
    with pytest.raises(UserError, match="its checksum is wrong"):
        load_classifier(moved)


def test_a_damaged_installation_is_one_sentence(copied):
    for kind, name in (("safetensors", f"{zoo.default()}.safetensors"), ("onnx", None)):
        zoo.default_file().with_suffix(f".{kind}").unlink()
        with pytest.raises(UserError, match="install qcs-fer anew"):
            qcs.load(name)
    (copied / "other.onnx").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"other\.onnx is not listed"):
        qcs.load(copied / "other.onnx")
    (copied / zoo.INDEX).write_text("{")
    with pytest.raises(UserError, match=r"zoo\.json cannot be read .* install qcs-fer anew"):
        qcs.load()


# -- safetensors -------------------------------------------------------------------------


def test_a_written_network_comes_back_rounded(tmp_path):
    network, parts = tiny_network(roles=1).eval(), tiny_recipe(roles=1)
    small.write(tmp_path / "a.safetensors", network, parts)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.recipe == parts and not loaded.network.training
    for key, value in network.state_dict().items():
        expected = value.half().float() if value.ndim > 1 else value
        assert torch.equal(loaded.network.state_dict()[key], expected), key


def changed(path: Path, recipe: dict | str, *, key: str = "", value: float = 0.0) -> Path:
    """A file with another recipe or number, whose checksum is right."""
    small.write(path, tiny_network(roles=1).eval(), tiny_recipe(roles=1))
    state = safetensors.torch.load(path.read_bytes())
    if key:
        state[key].view(-1)[0] = value
    text = recipe if isinstance(recipe, str) else json.dumps(recipe)
    content = safetensors.torch.save(state, {"qcs": text, checksum.KEY: checksum.EMPTY})
    path.write_bytes(checksum.sealed(content, checksum.SAFETENSORS))
    return path


@pytest.mark.parametrize(
    "recipe,options,sentence",
    [
        ({"format": 3}, {}, "format 3"),
        ("{", {}, "not JSON"),
        ("[1]", {}, "no checkpoint of"),
        (tiny_recipe(roles=1) | {"class_names": ["a", "b"]}, {}, "of shape"),
        (tiny_recipe(roles=4), {}, "lack"),
        (tiny_recipe("os.system", roles=1), {}, "not part of qcs and not trusted"),
        (
            tiny_recipe(roles=1),
            {"key": "network.base.encoder.head.bias", "value": np.nan},
            "not finite",
        ),
    ],
)
def test_a_file_is_checked_as_a_checkpoint_is(recipe, options, sentence, tmp_path):
    path = changed(tmp_path / "a.safetensors", recipe, **options)
    with pytest.raises(UserError, match=sentence) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_what_is_no_network_of_ours_says_so(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"without a recipe of qcs: .* backbone\.weights="):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="no whole safetensors file"):
        load_checkpoint(path)
    path.write_text("some text")
    with pytest.raises(UserError, match="it is a text file"):
        load_checkpoint(path)
