"""Checkpoints as a user names them."""

import pytest

from qcs.checkpoints.paths import checkpoint_groups, only_checkpoint
from qcs.config.errors import UserError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "a/x/best.ckpt",
        "b/x/best.ckpt",
        "model.ckpt",
        "run[1]/best.ckpt",
        "run1/best.ckpt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()


def test_checkpoints_are_named_by_what_tells_them_apart(runs):
    assert checkpoint_groups("model.ckpt", None) == {"": ["model.ckpt"]}
    assert checkpoint_groups(None, ["?/x/best.ckpt"]) == {n: [f"{n}/x/best.ckpt"] for n in "ab"}
    assert checkpoint_groups(None, ["model.ckpt", "a/x/best.ckpt"]) == {
        "model.ckpt": ["model.ckpt"],
        "a-x-best.ckpt": ["a/x/best.ckpt"],
    }
    assert checkpoint_groups(None, {"g": "?/x/*.ckpt", "h": ["model.ckpt"]}) == {
        "g": ["a/x/best.ckpt", "b/x/best.ckpt"],
        "h": ["model.ckpt"],
    }
    assert checkpoint_groups(None, ["run[1]/best.ckpt"]) == {
        "best.ckpt": ["run[1]/best.ckpt"]
    }  # it exists


def test_names_that_cannot_tell_apart_are_numbers():
    assert list(checkpoint_groups(None, ["a/b-c/x", "a-b/c/x"])) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(
    "ckpt,compare,sentence",
    [
        (None, None, "ckpt is not set"),
        ("m.ckpt", ["n.ckpt"], "not both"),
        (None, ["nowhere/*.pt"], "no checkpoint fits compare="),
        (None, [], "names no checkpoint"),
        (None, {}, "names no checkpoint"),
        (None, {"a": []}, "compare.a names no checkpoint"),
        (None, {"a": None}, "compare.a holds None"),
        (None, [3], "compare holds 3"),
        (None, ["a.ckpt", "./a.ckpt"], "names .*a.ckpt 2 times"),
        (None, {"../x": "a.ckpt"}, "names a group '../x'"),
    ],
)
def test_what_names_nothing_is_one_sentence(ckpt, compare, sentence):
    with pytest.raises(UserError, match=sentence):
        checkpoint_groups(ckpt, compare)
    if compare is not None:
        with pytest.raises(UserError, match="figure=pairs takes one checkpoint"):
            only_checkpoint(ckpt, compare, "figure=pairs")
