"""What the user typed is made fit for Hydra, or one sentence says what to write."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from qcs.config import compose as config
from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.config.overrides import (
    expand_home,
    no_choice_as_list,
    overrides_of,
    quote_path,
    with_key,
)


@pytest.mark.parametrize(
    "argument,sentence",
    [
        ("ckpt=a=b.ckpt", """write 'ckpt="a=b.ckpt"'"""),
        ("input=photo (1).jpg", """write 'input="photo (1).jpg"'"""),
        ("input=a[1].jpg", """write 'input="a[1].jpg"'"""),
        ("dataset.path=/data/Müller", """write 'dataset.path="/data/Müller"'"""),
        ("hydra.run.dir=a#b", """write 'hydra.run.dir="a#b"'"""),
        ("out=it's.csv", "write 'out=\"it'\"'\"'s.csv\"'"),
        ("a=[", "a=[ cannot be read: close every bracket"),
        ("trainer.max_epochs", "trainer.max_epochs has no value"),
        ("+x", "+x has no value"),
        ("--foo", "unrecognized arguments: --foo"),
        ("hydra.run.dir=", "hydra.run.dir= is empty: write hydra.run.dir=FOLDER, or leave it out"),
        ("store=", "store= is empty"),
        ("hydra.sweep.dir=''", "hydra.sweep.dir= is empty"),
        ("a b=3", "a b cannot be a key"),
        ("optimizer=[adam,sgd]", "has several choices, and optimizer is one: optimizer=adam"),
    ],
)
def test_what_cannot_be_parsed_says_how_to_write_it(argument, sentence):
    with pytest.raises(UserError) as error:
        overrides_of([argument])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_what_can_be_parsed_passes():
    overrides = [
        "seed=1,2",
        "logger=[csv,wandb]",
        "ablation=[sam,dot]",
        "input=a b.jpg",
        "~callbacks.last",
        "x='ü=(1)'",
        "input=[a,b]",
    ]
    assert overrides_of(["-m", *overrides, "--cfg", "job"]) == overrides
    assert overrides_of([*overrides[:2], "-m", *overrides[2:], "--resolve"]) == overrides


@pytest.mark.parametrize("words", [["a.jpg"], ["a b,c.jpg"], ["0"], ["~/x/*.jpg", "it's"], ["[a]"]])
def test_words_without_a_key_get_theirs(words):
    made = with_key(["out=x.csv", "-m", *words, "--resolve"], "predict", "input")
    assert made[:3] == ["out=x.csv", "-m", "--resolve"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("predict", overrides_of(made)).input
    assert (found if isinstance(found, str) else list(found)) == (
        words[0] if words[1:] == [] else words
    )


def test_what_exists_on_disk_is_a_word_whatever_it_looks_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["input", "a=b.jpg", "+1.jpg", "~a.jpg", "[ü] x=1"]
    for word in (*words, "out=x.csv", "hydra.run.dir=x"):
        Path(word).mkdir()
    made = with_key(["out=x.csv", "hydra.run.dir=x", *words], "predict", "input")
    assert made[:2] == ["out=x.csv", "hydra.run.dir=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert list(compose("predict", overrides_of(made)[2:]).input) == words
        for word in words:  # and so behind a key that holds nothing but a path
            assert compose("predict", overrides_of([quote_path(f"input={word}")])).input == word
    assert quote_path("model=a=b.jpg") == "model=a=b.jpg"


def test_a_key_without_a_value_is_no_word():
    with pytest.raises(UserError, match="annotate has no value"):
        overrides_of(with_key(["a.jpg", "annotate"], "predict", "input"))
    assert with_key(["~trust", "+x", ""], "predict", "input") == ["~trust", "+x", ""]
    with pytest.raises(UserError, match=r"a\.jpg and input=\.\.\. stand side by side"):
        with_key(["a.jpg", "input=b.jpg"], "predict", "input")


@pytest.mark.parametrize(
    "argument,expanded",
    [
        ("ckpt=~/a.ckpt", "ckpt=/home/me/a.ckpt"),
        ("hydra.run.dir=~/runs/a", "hydra.run.dir=/home/me/runs/a"),
        ('dataset.path="~/a b"', 'dataset.path="/home/me/a b"'),
        ("dataset.path=~", "dataset.path=/home/me"),
        ("~callbacks.last", "~callbacks.last"),
        ("out=a~/b", "out=a~/b"),
        ("out=~other/b", "out=~other/b"),
    ],
)
def test_the_home_folder_is_expanded_where_the_shell_does_not(argument, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(argument) == expanded


@pytest.mark.parametrize("name", ["model=qcs,seed=0", 'two "words"', "ü (1)", "{a}[b]"])
def test_a_path_that_exists_need_not_be_quoted(tmp_path, name):
    path = tmp_path / name / "best.ckpt"
    path.parent.mkdir()
    path.touch()
    (override,) = overrides_of([quote_path(f"ckpt={path}")])
    assert OverridesParser.create().parse_override(override).value() == str(path)
    for other in (f"ckpt={path}x", "seed=0,1", f"ckpt={tmp_path}/a", "-m"):
        assert quote_path(other) == other


@pytest.mark.parametrize(
    "override,written",
    [
        ("experiment=null", "experiment=[]"),
        ("experiment=null,paper", "experiment=[],paper"),
        ("experiment=paper", "experiment=paper"),
        ("model=null", "model=null"),
        ("seed=null", "seed=null"),
    ],
)
def test_a_group_without_a_choice_may_be_named_so(override, written):
    assert no_choice_as_list(override, "train") == written
    if written == "experiment=[]":
        assert config.compose("train", [written]) == config.compose("train", [])
