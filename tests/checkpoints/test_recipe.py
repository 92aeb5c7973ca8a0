"""A file of a stranger reaches no code, no network and no path; what is wrong is one sentence."""

import copy
import json
import math
import os
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from conftest import tiny_checkpoint, tiny_recipe
from qcs.checkpoints import datasets, recipe, registry
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.data.sources import synthetic
from qcs.models import IR

CYCLE: dict = {"name": "qcs"}
CYCLE["base"] = CYCLE
DEEP: dict = {"name": "ir"}
for _ in range(5000):
    DEEP = {"name": "ir", "units": [DEEP]}


def one_sentence(path: Path, load=load_checkpoint, **options) -> str:
    """What is told of a file that is refused: its name, and a reason of some words."""
    with pytest.raises(UserError) as refused:
        load(path, **options)
    text = str(refused.value)
    assert str(path) in text and "\n" not in text and len(text) < 1000
    assert len(text.rpartition(str(path))[2].strip(" :")) > 10, text
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt")


@pytest.fixture(scope="module")
def content(file) -> dict:
    return torch.load(file, weights_only=True)


# -- registry -----------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "numpy.save",
    "pathlib.Path.write_text",
    "qcs.data.regrouping.np.save",
    "qcs.data.groups.torch.load",
    "qcs.data.store.os.makedirs",
    "qcs.data.prepared.shutil.rmtree",
    "qcs.models.network.torch.hub.load",
    "qcs.models.backbones.ir50.nn.Module",
    "qcs.checkpoints.recipe.timm_backbone",
    "qcs.data.sources.synthetic.make",
    "hydra.utils.call",
    "ir.__init__.__globals__",
    "../evil.Backbone",
    "mine:run",
    "",
    "hf-hub:someone/model",
]


@pytest.mark.parametrize("kind", ["backbone", "model", "transform", "dataset"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_not_in_the_table_is_refused(kind, name):
    parts = tiny_recipe()
    for key in ("name", "_target_"):  # of this format, and of the one before
        hostile = copy.deepcopy(parts) | {"format": 2 if key == "name" else 1, kind: {key: name}}
        for other in {"backbone", "model", "transform", "dataset"} - {kind}:
            node = hostile[other]
            targets = {v: k for k, v in registry.NAMES.items()}
            hostile[other] = {key: node["name"] if key == "name" else targets[node["name"]]}
            hostile[other] |= {k: v for k, v in node.items() if k != "name"}
        with pytest.raises(UserError, match=f"{kind} .*(not part of qcs|is not known)"):
            recipe.parse(hostile)


def test_each_name_is_of_its_own_kind():
    for kind, table in registry.TABLE.items():
        for other in registry.TABLE.keys() - {kind}:
            for name in table:
                with pytest.raises(UserError, match="is not known"):
                    registry.maker(other, name)


# -- arguments ----------------------------------------------------------------------------------

TIMM = {"name": "timm", "model_name": "resnet18", "out_indices": [1, 2, 3]}
LYING = [
    ("backbone", None, "backbone is None"),
    ("backbone", "ir", "backbone is 'ir'"),
    ("backbone", {"units": [1]}, "which has no name"),
    ("backbone", DEEP, "nested or long beyond any use"),
    ("backbone.units", [{"_target_": "os.system", "command": "touch hacked"}], "units.0 cannot be"),
    ("backbone.units", ["1", 1], "backbone.units.0 cannot be '1'"),
    ("backbone.units", [True, True], "backbone.units.0 cannot be True"),
    ("backbone.units", [1, 10**9], "should be from 1 to 100"),
    ("backbone.units", [1] * 1000, "1000 numbers, more than 16"),
    ("backbone.units", [], "one positive number a stage each"),
    ("backbone.units", list(range(20_000)), "nested or long beyond any use"),
    ("backbone.channels", [8, -16], "channels=.* should be from 1 to 4096"),
    ("backbone.channels", [8, 4096], "its weights have base.backbone.* of shape"),
    ("backbone.stem_stride", 10**400, "more than 64 bits"),
    ("backbone.stem_stride", 0, "should be from 1 to 8"),
    ("backbone.weights", "/etc/passwd", "backbone.'weights' is not an option"),
    ("backbone._target_", "os.system", "backbone.'_target_' is not an option"),
    ("backbone._args_", ["touch hacked"], "backbone.'_args_' is not an option"),
    ("backbone", TIMM | {"pretrained": True}, "backbone.pretrained cannot be True"),
    ("backbone", TIMM | {"pretrained_cfg": {"url": "http://x"}}, "'pretrained_cfg' is not an opt"),
    ("backbone", TIMM | {"checkpoint_path": "/etc/passwd"}, "'checkpoint_path' is not an option"),
    ("backbone", TIMM | {"cache_dir": "/tmp"}, "'cache_dir' is not an option"),
    ("backbone", TIMM | {"model_name": "hf-hub:someone/model"}, "is no model of timm"),
    ("backbone", TIMM | {"model_name": "hf_hub:someone/model"}, "is no model of timm"),
    ("backbone", TIMM | {"model_name": "local-dir:/etc"}, "is no model of timm"),
    ("backbone", TIMM | {"model_name": "https://x/resnet18"}, "is no model of timm"),
    ("backbone", TIMM | {"model_name": 18}, "backbone.model_name cannot be 18"),
    ("backbone", TIMM | {"features_only": False}, "features_only cannot be False"),
    ("backbone", TIMM | {"out_indices": [99]}, "should be from -16 to 15"),
    ("backbone", TIMM, "halving does not bring"),
    ("model", CYCLE, "nested or long beyond any use"),
    ("model", {"name": "qcs", "backbone": {"name": "ir"}}, "model.'backbone' is not an option"),
    ("model.num_heads", 0, "model.num_heads=0 should be from 1"),
    ("model.num_heads", -2, "model.num_heads=-2 should be from 1"),
    ("model.num_heads", 3, "does not divide embed_dim=16"),
    ("model.num_heads", 2.0, "model.num_heads cannot be 2.0"),
    ("model.num_heads", math.nan, "a number that is not finite"),
    ("model.embed_dim", 10**9, "should be from 1 to 8192"),
    ("model.embed_dim", 8192, "its weights have .* of shape"),
    ("model.grid", 0, "should be from 1 to 64"),
    ("model.input_size", 10**6, "should be from 1 to 1024"),
    ("model.roles", 3, "model.roles cannot be 3"),
    ("model.base", {"depth": -1}, "model.base.depth=-1 should be from 0"),
    ("model.base", {"depth": 10**6}, "model.base.depth=1000000 should be from 0"),
    ("model.base", {"drop": 7.0}, "model.base.drop=7.0 should be from 0 to 1"),
    ("model.base", {"landmarks": {"weights": "/etc/passwd"}}, "cannot be|is a path|lack"),
    ("model.base", {"oops": 1}, "model.base.oops cannot be 1"),
    ("model.cross", {"similarity": {"mode": "sum"}}, "model.cross.similarity.mode cannot be 'sum'"),
    ("model.cross", "yes", "model.cross cannot be 'yes'"),
    ("transform", None, "transform is None"),
    ("transform", {"name": "evaluation"}, "transform lacks size"),
    ("transform.size", 10**6, "transform.size=1000000 should be from 1"),
    ("transform.resize", 4, "resize=4 is smaller than size=16"),
    ("transform.mean", [0.5], "at least 3 items"),
    ("transform.mean", ["a", "b", "c"], "transform.mean.0 cannot be 'a'"),
    ("transform.std", [0.0, 0.0, 0.0], "greater than 0"),
    ("dataset", None, "dataset is None"),
    ("dataset", [], "dataset is \\[\\]"),
    ("dataset.path", "/etc", "dataset.path is a path"),
    ("dataset.root", "/etc", "dataset.root is a path"),
    ("dataset", {"name": "lists", "train": "/etc/passwd"}, "dataset.train is a path"),
    ("dataset", {"name": "lists", "test": "../../x"}, "dataset.test is a path"),
    ("dataset", {"name": "lists", "val": "C:\\x"}, "dataset.val is a path"),
    ("dataset", {"name": "synthetic", "path": "/etc"}, "dataset.path is a path"),
    ("dataset", {"name": "synthetic", "train": 10**8}, "dataset.train=100000000 should be"),
    ("dataset", {"name": "synthetic", "size": 10**6}, "dataset.size=1000000 should be"),
    ("dataset", {"name": "ferplus", "labels": {"_target_": "os.system"}}, "dataset.labels cannot"),
    ("class_names", [], "two or more different names"),
    ("class_names", ["red"], "two or more different names"),
    ("class_names", ["red", "red", "blue"], "two or more different names"),
    ("class_names", ["red", "", "blue"], "not a list of names"),
    ("class_names", [1, 2, 3], "not a list of names"),
    ("class_names", None, "not a list of names"),
    ("class_names", "red", "not a list of names"),
    ("class_names", ["x" * 10_000, "y"], "a text of 10000 characters"),
    ("class_names", ["red", "green", "blue", "grey"], "its weights have base.encoder.head"),
    ("class_names", ..., "not a list of names"),
    ("select_on", "train", "select_on='train' is none of"),
    ("select_on", ["val"], "is none of"),
    ("format", 3, "install a newer one"),
    ("format", "2", "format '2'"),
    ("format", 1, "names no _target_"),
    ("backbone.units", torch.ones(2), "a Tensor where plain data is expected"),
]


@pytest.mark.parametrize("key,value,sentence", LYING, ids=range(len(LYING)))
def test_a_lying_recipe_is_one_sentence(key, value, sentence, content, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code ran"))
    parts = copy.deepcopy({k: v for k, v in content["qcs"].items()}) if key else {}
    node, *steps = [parts, *key.split(".")]
    for step in steps[:-1]:
        node = node[step]
    if value is ...:
        del node[steps[-1]]
    else:
        node[steps[-1]] = value
    path = tmp_path / "lying.ckpt"
    monkeypatch.setattr(
        "qcs.checkpoints.reading.read", lambda _: {"qcs": parts, "state_dict": state}
    )
    state = content["state_dict"]
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 28)  # larger than the weights
    assert re.search(sentence, one_sentence(path))


def _without(state: dict, key: str) -> dict:
    return {k: v for k, v in state.items() if k != key}


HEAD = "network.base.encoder.head.weight"
WEIGHTS = [
    (lambda s: None, "holds no weights"),
    (lambda s: {}, "holds no weights"),
    (lambda s: [1, 2], "holds no weights"),
    (lambda s: "weights", "holds no weights"),
    (lambda s: _without(s, HEAD), "its weights lack base.encoder.head.weight"),
    (lambda s: {}.fromkeys(s, 1), "is not a plain tensor"),
    (lambda s: s | {"network.more": torch.ones(1)}, "has not"),
    (lambda s: s | {HEAD: s[HEAD].T}, "of shape"),
    (lambda s: s | {HEAD: torch.ones(1).expand(10**12)}, "bytes of memory, and the file holds"),
    (lambda s: s | {HEAD: s[HEAD] / 0}, "that are not finite"),
    (lambda s: s | {HEAD: s[HEAD].to_sparse()}, "is not a plain tensor"),
    (lambda s: s | {HEAD: s[HEAD].to(torch.complex64)}, "is not a plain tensor"),
    (lambda s: s | {HEAD: s[HEAD].long()}, "of type torch.int64"),
    (lambda s: {k.removeprefix("network."): v for k, v in s.items()}, "its weights lack"),
]


@pytest.mark.parametrize("change,sentence", WEIGHTS, ids=range(len(WEIGHTS)))
def test_lying_weights_are_one_sentence(change, sentence, content, tmp_path):
    path = tmp_path / "lying.ckpt"
    torch.save(content | {"state_dict": change(content["state_dict"])}, path)
    assert sentence in one_sentence(path)


@pytest.mark.parametrize(
    "value", [[], 1, {"state_dict": {}}, {"qcs": None}, {"qcs": [1]}, {"qcs": {}}, torch.ones(3)]
)
def test_other_files_of_torch_are_one_sentence(value, tmp_path):
    torch.save(value, tmp_path / "other.ckpt")
    one_sentence(tmp_path / "other.ckpt")


# -- what loads ---------------------------------------------------------------------------------

FORMER = {  # what `qcs.train` wrote before names
    "qcs_version": "0.1.0",
    "backbone": {"_target_": "qcs.models.IR", "units": [1, 1], "channels": [8, 16],
                 "stem_stride": 2},
    "model": {"_target_": "qcs.models.QCSNetwork", "roles": 4, "input_size": 16, "embed_dim": 16,
              "grid": 2, "num_heads": 2, "base": {"depth": 2, "drop": 0.0, "landmarks": None},
              "cross": {"depth": 1, "similarity": {"mode": "both"}}, "num_classes": 3},
    "class_names": ["red", "green", "blue"],
    "dataset": {"_target_": "qcs.data.sources.ferplus.read", "path": "/home/someone/ferplus.zip",
                "train_on_val": True, "labels": "majority"},
    "transform": {"_target_": "qcs.data.transforms.evaluation", "size": 16, "resize": 20},
    "select_on": "val",
}  # fmt: skip


def test_a_checkpoint_of_format_1_loads_as_it_did(content, tmp_path):
    torch.save(content | {"qcs": FORMER}, tmp_path / "former.ckpt")
    made = load_checkpoint(tmp_path / "former.ckpt")
    assert made.recipe["dataset"] == {"name": "ferplus", "train_on_val": True, "labels": "majority"}
    state = {k.removeprefix("network."): v for k, v in content["state_dict"].items()}
    for key, value in made.network.state_dict().items():
        assert torch.equal(value, state[key])
    hostile = copy.deepcopy(FORMER)
    hostile["dataset"] = {"_target_": "qcs.data.store.os.makedirs", "exist_ok": True}
    path = tmp_path / "hostile.ckpt"
    torch.save(content | {"qcs": hostile}, path)
    assert "not part of qcs" in one_sentence(path)
    torch.save(content | {"qcs": hostile | {"dataset": {"_target_": "os.x", "name": "csv"}}}, path)
    assert "dataset.name is no argument" in one_sentence(path)
    (number := copy.deepcopy(FORMER))["model"]["num_classes"] = 7
    torch.save(content | {"qcs": number}, tmp_path / "number.ckpt")
    assert "there are 3 class_names" in one_sentence(tmp_path / "number.ckpt")


@pytest.mark.parametrize("target,name", registry.NAMES.items())
def test_every_path_that_format_1_wrote_is_known(target, name):
    (kind,) = (kind for kind, table in registry.TABLE.items() if name in table)
    assert callable(registry.maker(kind, name))
    if kind == "dataset":
        former = FORMER | {"dataset": {"_target_": target, "path": "/somewhere"}}
        expected = "synthetic_folder" if name == "synthetic" else name  # it had a path
        assert recipe.parse(former)["dataset"] == {"name": expected}


def test_a_timm_backbone_is_built_untrained(monkeypatch):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: asked.append(o) or create(*a, **o))
    former = {
        "_target_": "timm.create_model",
        "model_name": "resnet18.a1_in1k",
        "pretrained": False,
    }
    former |= {"features_only": True, "out_indices": [1, 2, 3]}
    parts = recipe.parse(FORMER | {"backbone": former} | {"model": FORMER["model"] | {"grid": 1}})
    with torch.device("meta"):
        recipe.network(parts)
    assert [options["pretrained"] for options in asked] == [False]


def test_a_data_set_needs_a_path_of_the_users(tmp_path):
    parts = recipe.parse(FORMER)
    with pytest.raises(UserError, match=r"dataset.path is not set: .* on ferplus .* add dataset"):
        datasets.read_dataset(datasets.dataset_config(parts, {"path": None}))
    with pytest.raises(UserError, match="nothing to read at dataset.path=nowhere"):
        datasets.read_dataset(datasets.dataset_config(parts, {"path": "nowhere"}))
    with pytest.raises(UserError, match="dataset.foo is not an option; dataset takes path"):
        datasets.read_dataset(datasets.dataset_config(parts, {"path": "nowhere", "foo": 1}))
    own = {"_target_": "qcs.data.sources.rafdb.read", "path": "x"}
    assert datasets.dataset_config(parts, own) == own


def test_a_file_asks_for_no_more_drawn_faces_than_minutes_draw(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read = []
    monkeypatch.setattr(synthetic, "make", lambda folder, **_: read.append(folder) or tmp_path)
    monkeypatch.setattr(synthetic.Manifest, "from_csv", lambda *_, **options: options)
    datasets.read_dataset({"name": "synthetic"})
    large = {"name": "synthetic", "train": 20_000, "size": 2048}
    with pytest.raises(UserError, match=r"write dataset=synthetic dataset.train=20000 dataset"):
        datasets.read_dataset(large)
    assert len(read) == 1
    synthetic.cached(size=2048, train=20_000).mkdir(parents=True)  # the user has drawn them
    datasets.read_dataset(large)
    assert len(read) == 2


def test_a_recipe_holds_no_path_of_the_machine_that_trained():
    config = {"augment": {"eval": FORMER["transform"]}, "select_on": "val"}
    config["backbone"] = FORMER["backbone"] | {"weights": "/secret/a.pth"}
    config["model"] = {"_target_": "qcs.models.QCSNetwork"}
    config["model"]["base"] = {"landmarks": {"weights": "/secret/b"}}
    config["dataset"] = {"_target_": "qcs.data.sources.lists.read", "path": "/secret/faces"}
    config["dataset"] |= {"train": "a.txt", "test": "/secret/t.txt", "val": "lists/val.txt"}
    made = recipe.describe(config, ["a", "b"])
    assert "secret" not in json.dumps(made)
    assert made["dataset"] == {"name": "lists", "train": "a.txt", "val": "lists/val.txt"}
    assert recipe.parse(made) == made


# -- the user's own code ------------------------------------------------------------------------


class OwnBackbone(IR):
    """A backbone outside of the package."""

    def __init__(self, width: int = 8) -> None:
        super().__init__((1, 1), (width, 2 * width), 2)


class OwnNetwork(nn.Module):
    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()


@pytest.fixture
def own(tmp_path, content) -> Path:
    parts = copy.deepcopy(content["qcs"])
    parts["backbone"] = {"name": f"{__name__}.OwnBackbone", "width": 8}
    torch.save(content | {"qcs": parts}, tmp_path / "own.ckpt")
    return tmp_path / "own.ckpt"


def test_own_code_is_built_only_where_it_is_trusted_by_name(own):
    name = f"{__name__}.OwnBackbone"
    assert f"add trust=[{name}]" in one_sentence(own)
    assert "not trusted" in one_sentence(own, trust=[__name__, f"{name}2", "*"])
    for trust in (name, [name]):
        network = load_checkpoint(own, trust).network
        assert type(network.base.backbone).__name__ == "OwnBackbone"
    with pytest.raises(UserError, match="cannot be imported"):
        registry.maker("backbone", "nowhere.Backbone", "nowhere.Backbone")


def test_a_run_that_could_not_be_loaded_is_refused_before_it_starts():
    config = {"select_on": "val", "augment": {"eval": FORMER["transform"]}, "trust": None}
    config |= {kind: FORMER[kind] for kind in ("model", "dataset", "backbone")}
    recipe.require_trust(config)
    for kind in ("backbone", "model", "dataset"):
        own = config | {kind: {"_target_": "mine.Own"}}
        with pytest.raises(UserError, match=rf"{kind} 'mine.Own' .* trust=\[mine.Own\]"):
            recipe.require_trust(own)
