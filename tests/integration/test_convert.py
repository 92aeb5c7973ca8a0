"""The authors' files become ours: all eight kinds, whole training files, old and new names."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parity import MODELS, PARITY, official, recipe
from test_train import qcs

from qcs.checkpoints.load import load_checkpoint
from qcs.checkpoints.official import DATASETS, convert
from qcs.checkpoints.official_keys import from_official
from qcs.config.errors import UserError

KEYS = PARITY / "keys" / "QCS_7cls_raf_db.json"


def keys() -> list[str]:
    return [k for k, _, _ in json.loads(KEYS.read_text())["keys"]]


def zeros(name: str) -> dict[str, torch.Tensor]:
    """A state dict of an official file's keys and shapes, one number each on the disk."""
    listed = json.loads((PARITY / "keys" / f"{name}.json").read_text())["keys"]
    return {f"module.{k}": torch.zeros(()).expand(shape) for k, shape, _ in listed}


def training_file(path: Path, state: dict[str, torch.Tensor], best: float, **more) -> Path:
    content = {"epoch": 7, "state_dict": state, "best_acc": torch.tensor(best), "optimizer": {}}
    torch.save(content | more, path)
    return path


def test_prefix_and_newer_embedding_names_give_the_same_targets():
    old, _ = from_official({k: torch.zeros(()) for k in keys()})
    renamed = {"q": "1", "k": "2", "v": "3"}
    newer = [
        "module." + re.sub(r"^embed_([qkv])", lambda m: f"embed_{renamed[m[1]]}", k) for k in keys()
    ]
    assert newer != keys()
    new, _ = from_official({k: torch.zeros(()) for k in newer})
    assert set(new) == set(old)


def test_an_unknown_key_is_an_error_that_names_it():
    with pytest.raises(UserError, match="VIT_base.surprise.weight"):
        from_official({"conv1.bias": torch.zeros(64), "VIT_base.surprise.weight": torch.zeros(1)})


def test_two_keys_of_one_target_are_an_error():
    with pytest.raises(UserError, match="repeats"):
        from_official({"conv1.bias": torch.zeros(64), "module.conv1.bias": torch.zeros(64)})


@pytest.mark.parametrize("name", MODELS)
def test_every_official_kind_is_recognised(name, tmp_path):
    roles, classes, rest = name.split("_", 2)
    data = {"raf_db": "rafdb", "ferplus": "ferplus", "affectnet": f"affectnet{classes[0]}"}[rest]
    best = 65.0 if rest == "affectnet" else 92.0
    file = training_file(tmp_path / "official.pth", zeros(name), best)
    parts = convert(file, tmp_path / "out.ckpt").recipe
    made = load_checkpoint(tmp_path / "out.ckpt")
    assert made.class_names == DATASETS[data] and made.network.num_classes == int(classes[0])
    assert made.network.roles == (4 if roles == "QCS" else 2)
    assert parts["dataset"]["name"] == data.rstrip("78")
    eight_class_pair = name.startswith("DCS_8")
    assert (parts["model"]["cross"]["similarity"]["residual"] == "prenorm") == eight_class_pair
    lines = (tmp_path / "out.keys.txt").read_text().splitlines()
    assert {line.split(" ")[0] for line in lines} == set(zeros(name))


def test_a_converted_file_gives_the_authors_logits(tmp_path):
    """Through the command line; the golden numbers are of the authors' own evaluation."""
    name = "QCS_7cls_raf_db"
    state = {f"module.{k}": v for k, v in official(name).items()}
    training_file(tmp_path / "official.pth", state, 92.5)
    qcs("convert", "official.pth", "out.ckpt", cwd=tmp_path)
    network = load_checkpoint(tmp_path / "out.ckpt").network
    golden = np.load(PARITY / f"golden_{name}.npz")
    with torch.inference_mode():
        logits = network(torch.from_numpy(recipe.images("anchor", 3)))
    np.testing.assert_allclose(logits, golden["f32_eval_logits"], atol=3e-5, rtol=0)
    again = qcs("convert", "official.pth", "out.ckpt", cwd=tmp_path, ok=False)
    assert "error: out.ckpt is there already" in again.stderr


def test_the_data_set_is_taken_from_the_files_name_or_asked_for(tmp_path):
    state = zeros("QCS_7cls_affectnet")
    torch.save(state, tmp_path / "QCS_AffectNet.pth")
    made = convert(tmp_path / "QCS_AffectNet.pth", tmp_path / "a.ckpt")
    assert made.recipe["dataset"]["name"] == "affectnet"
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match="add --dataset rafdb or --dataset affectnet7"):
        convert(tmp_path / "model.pth", tmp_path / "b.ckpt")
    convert(tmp_path / "model.pth", tmp_path / "b.ckpt", "affectnet7")
    with pytest.raises(UserError, match="has 7 classes, so it is one of rafdb or affectnet7"):
        convert(tmp_path / "model.pth", tmp_path / "c.ckpt", "ferplus")


class Call:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_what_is_no_official_model_is_one_sentence_and_nothing_runs(tmp_path):
    training_file(tmp_path / "hostile.pth", zeros("QCS_7cls_raf_db"), 92.0, recorder=Call())
    state = zeros("QCS_7cls_raf_db")
    training_file(tmp_path / "part.pth", dict(list(state.items())[:-40]), 92.0)
    training_file(tmp_path / "ten.pth", {"VIT_base.head.linear.weight": torch.zeros(10, 4)}, 92.0)
    (tmp_path / "text.pth").write_text("not a model")
    for name, sentence in {
        "hostile.pth": "system, which is not run here",
        "part.pth": "is not a whole model of the authors: ",
        "ten.pth": "has 10 classes, the authors' models have 7 or 8",
        "text.pth": "cannot be read as weights",
        "nowhere.pth": "no file of weights at .*nowhere.pth",
    }.items():
        with pytest.raises(UserError, match=sentence):
            convert(tmp_path / name, tmp_path / "out.ckpt")
    done = qcs("convert", "hostile.pth", "out.ckpt", cwd=tmp_path, ok=False)
    assert "error: hostile.pth" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "out.ckpt").exists()
