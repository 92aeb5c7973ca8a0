"""Commands in messages do what they say when they are copied."""

import logging
import shlex

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import three_colours
from qcs.checkpoints.datasets import read_manifest
from qcs.config.hints import command_line, dataset_options, option
from qcs.config.keys import CONF
from qcs.config.options import resolve
from qcs.prepare import Settings, prepare

ODD = [
    "a b",
    "it's",
    "x=y",
    "back\\slash\\",
    "a\\'b",
    "${oc.env:HOME}",
    "ü笑",
    "[a,b]",
    "~/x",
    "2024",
    "1e5",
    "null",
    "True",
    "{}",
    "$HOME",
    'say "hi"',
    "a!b`c`",
    "a\nb",
    "",
    " lead",
    "C:\\dir\\",
    "-x",
    "a,b",
    "#1",
    "plain/path.csv",
]


@pytest.mark.parametrize("value", [*ODD, None, True, 3, 0.5, ["a b", "c,d", "[x]", "7"]])
def test_what_a_shell_and_hydra_read_is_what_was_meant(value):
    (word,) = shlex.split(option("dataset.path", value))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("check", ["dataset=csv", word], return_hydra_config=False)
    assert OmegaConf.to_container(config.dataset, resolve=True)["path"] == value


def test_simple_values_stand_as_they_are():
    command = command_line("qcs.prepare", {"dataset": "csv", "dataset.path": "/a/b c.csv", "n": 2})
    assert command == "python -m qcs.prepare dataset=csv \"dataset.path='/a/b c.csv'\" n=2"


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=ferplus", "dataset.path=/x/f.zip", "dataset.labels=soft"],
        ["dataset=affectnet8", "dataset.path=/x", "dataset.crop=false"],
        ["dataset=csv", "dataset.path=/x", "dataset.class_names=[b,a]"],
        ["dataset=synthetic", "dataset.train=6"],
        ["dataset=image_folder", "dataset.path=/x"],
    ],
)
def test_the_options_of_a_data_set_choose_it_again(words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dataset = OmegaConf.to_container(compose("prepare", words).dataset)
        command = command_line("qcs.prepare", dataset_options(dataset))
        again = compose("prepare", shlex.split(command)[3:]).dataset
    assert OmegaConf.to_container(again) == dataset
    assert len(shlex.split(command)) <= 3 + len(words) + 1


def test_a_reader_of_the_users_own_is_chosen_by_its_path():
    words = ["dataset=own", "dataset._target_=mine.read", "dataset.path=/x", "+dataset.level=2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dataset = OmegaConf.to_container(compose("prepare", words).dataset)
        command = command_line("qcs.prepare", dataset_options(dataset))
        assert compose("prepare", shlex.split(command)[3:]).dataset == dataset


def test_the_hint_of_a_training_prepares_what_it_reads(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "a b=c"
    folder.mkdir()
    three_colours(folder).to_csv(folder / "t.csv")
    dataset = {"_target_": "qcs.data.manifest.Manifest.from_csv", "path": str(folder / "t.csv")}
    transforms, stores = [{"resize": 20, "size": 16}, {"size": 20}], str(tmp_path / "stores")
    recipe = {"name": "csv", "path": dataset["path"]}  # of a checkpoint
    assert read_manifest(recipe, transforms, stores).store is None
    first = caplog.text.split("`")[1]
    caplog.clear()
    assert read_manifest(dataset, transforms, stores).store is None
    assert caplog.text.split("`")[1] == first
    words = shlex.split(first)
    assert words[:3] == ["python", "-m", "qcs.prepare"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = compose("prepare", [*words[3:], "num_workers=0", f"run_dir={tmp_path}"])
        prepare(resolve(made, Settings))
    assert read_manifest(dataset, transforms, stores).store is not None
