"""Every file in conf/ composes and instantiates; what a user mistypes is one sentence."""

import copy
import itertools
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qcs.config.errors import UserError
from qcs.config.keys import CONF
from qcs.config.options import instantiate, resolve
from qcs.models import QCSNetwork
from qcs.training import build

GROUPS = (
    "model",
    "loss",
    "augment",
    "optimizer",
    "scheduler",
    "trainer",
    "speed",
    "experiment",
    "debug",
    "ablation",
)


def config(tmp_path: Path, *overrides: str, name: str = "train") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, [*overrides, f"run_dir={tmp_path}"])
    return resolve(cfg, import_module(f"qcs.{name}").Settings)


def choices(group: str) -> list[str]:
    """All files of a group, but for the one that is for code of the user's own."""
    return sorted(f.stem for f in (CONF / group).glob("*.yaml") if f.stem != "own")


@pytest.mark.parametrize("group,choice", [(g, c) for g in GROUPS for c in choices(g)])
def test_every_choice_composes_and_passes_the_check(group, choice, tmp_path):
    config(tmp_path, f"{group}={choice}", "backbone.weights=null")


@pytest.mark.parametrize("choice", choices("dataset"))
def test_every_data_set_says_what_it_needs_or_reads(choice, tmp_path):
    parts = config(tmp_path, f"dataset={choice}")["dataset"]
    if choice == "synthetic":
        parts |= {"path": str(tmp_path / "faces"), "train": 1, "val": 1, "test": 1, "size": 32}
        assert len(instantiate(parts)) == 3 * 7
        return
    with pytest.raises(UserError, match="dataset.path"):
        instantiate(parts)


@pytest.mark.parametrize("backbone", choices("backbone"))
@pytest.mark.parametrize("model", choices("model"))
@pytest.mark.parametrize("size", choices("model/size"))
def test_every_network_builds_and_runs(backbone, model, size, tmp_path):
    parts = config(tmp_path, f"backbone={backbone}", f"model={model}", f"model/size={size}")
    if backbone == "timm" and size == "paper":
        parts["backbone"]["out_indices"] = [1, 2, 3]
    network = build.network(parts, range(7))
    assert isinstance(network, QCSNetwork)
    pixels = parts["model"]["input_size"]
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, pixels, pixels)).shape == (1, 7)


@pytest.mark.parametrize("choice", choices("optimizer"))
def test_every_optimiser_and_schedule_builds(choice, tmp_path):
    weight = torch.nn.Parameter(torch.zeros(2))
    for scheduler in choices("scheduler"):
        parts = config(tmp_path, f"optimizer={choice}", f"scheduler={scheduler}")
        optimizer = instantiate(parts["optimizer"])([weight])
        schedule = parts["scheduler"]["schedule"]
        make = schedule and instantiate(schedule)
        if make:
            steps = {"total_steps": 20} if parts["scheduler"]["interval"] == "step" else {}
            assert make(optimizer, **steps).get_last_lr()[0] > 0


@pytest.mark.parametrize(
    "override,sentence",
    [
        ("loader.batch_size=many", 'loader.batch_size="many" should be a valid integer'),
        ("loader.batch_size='8'", 'loader.batch_size="8" should be a valid integer'),
        ("loader.batch_size=8.0", "loader.batch_size=8.0 should be a valid integer"),
        ("loader.negatives=all", "loader.negatives=\"all\" should be 'by_sample' or 'by_class'"),
        ("model.cross.similarity.mode=sum", 'model.cross.similarity.mode="sum" should be'),
        ("model.cross.drop=lots", 'model.cross.drop="lots" should be a valid number'),
        ("augment.train.jitter=[a,b,c,d]", 'augment.train.jitter[0]="a" should be a valid'),
        ("augment.train.jitter=[0.1,0.1]", "should be of length 4 or more"),
        ("backbone.units=[1,two,3]", 'backbone.units[1]="two" should be a valid integer'),
        ("backbone.units=[1,0,3]", "backbone.units[1]=0 should be greater than or equal to 1"),
        ("sam.rho=big", 'sam.rho="big" should be a valid number'),
        ("seed=1.5", "seed=1.5 should be a valid integer"),
        ("seed=true", "seed=true should be a valid integer"),
        ("store=7", "a text that looks like a number is written 'store=\"7\"'"),
        ("select_on=train", "select_on=\"train\" should be 'val', 'test' or 'last'"),
        ("+loss.alpha=1", "loss.alpha is not an option; loss takes base_weight"),
        ("+loss.temprature=1", "did you mean loss.temperature?"),
        (
            "+model.cross.similarity.alpha=1",
            "model.cross.similarity.alpha is not an option; "
            "model.cross.similarity takes mode, extremes, residual",
        ),
        ("+optimizer.momentum=0.9", "optimizer.momentum is not an option"),
        ("optimizer.lr=fast", 'optimizer.lr="fast" should be a valid number'),
        ("~seed", "seed was taken out of the configuration"),
        ("loss._target_=math.inf", "loss._target_=math.inf takes no options"),
        ("loss._target_=qcs.training.losses.Nothing", "cannot be imported"),
        ("+nonsense=1", "nonsense is not an option; the command takes seed"),
        (
            "+scheduler._target_=torch.optim.lr_scheduler.StepLR",
            "scheduler._target_ is not an option; scheduler takes interval, schedule",
        ),
        ("+sam._target_=math.sqrt", "sam._target_ is not an option; sam takes rho"),
        ("+sed=1", "sed is not an option, did you mean seed?"),
        ("loss._target_=no.such.Loss", "ModuleNotFoundError(\"No module named 'no'\") Are"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_built(override, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        config(tmp_path, override)
    assert sentence in str(error.value)


def test_what_manual_optimisation_takes_elsewhere_is_named(tmp_path):
    parts = config(tmp_path, "+trainer.accumulate_grad_batches=2")
    with pytest.raises(UserError, match="write accumulate_grad_batches="):
        build.trainer(parts, tmp_path)


def test_class_weights_must_fit_the_classes(tmp_path, faces):
    parts = config(tmp_path, "loss=class_weights")
    torch.testing.assert_close(build.loss(parts, faces).class_weights, torch.ones(3))
    parts = config(tmp_path, "loss.class_weights=[1,2]")
    with pytest.raises(UserError, match="2 numbers for 3 classes"):
        build.loss(parts, faces)


COMMANDS = ("train", "eval", "predict", "export", "check", "prepare", "figures", "demo")


def numbers(node: dict, before: str = "") -> list[str]:
    """The keys of all numbers in a config, those in lists apart."""
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += numbers(value, f"{before}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(f"{before}{key}")
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_that_make_no_sense_are_refused_in_one_sentence(name, tmp_path):
    choices = {"figures": ["figure=curves"], "train": ["callbacks=[default,ema,early_stopping]"]}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, [*choices.get(name, []), f"run_dir={tmp_path}"])
    settings, free = import_module(f"qcs.{name}").Settings, {"min_delta"}
    keys = [key for key in numbers(resolve(cfg, settings)) if key.rpartition(".")[2] not in free]
    for key, value in itertools.product(keys, (float("nan"), float("inf"), -7, 10**30)):
        if isinstance(OmegaConf.select(cfg, key), float) and value == 10**30:
            continue
        wrong = copy.deepcopy(cfg)
        OmegaConf.update(wrong, key, value)
        with pytest.raises(UserError) as error:
            resolve(wrong, settings)
        assert "should be" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "loader.batch_size=0",
        "loader.num_workers=1000000000",
        "loader.samples_per_epoch=0",
        "loader.val_fraction=1.0",
        "model.grid=0",
        "model.base.depth=0",
        "model.cross.drop=1.5",
        "augment.train.flip=1.1",
        "augment.train.erase=2",
        "augment.train.size=0",
        "trainer.max_epochs=-2",
        "trainer.precision=bf16-true",
        "optimizer.lr=0",
        "sam.every=0",
        "gradient_clip_norm=0",
        "seed=-1",
        "seed=100000000000",
    ],
)
def test_bounds(override, tmp_path):
    with pytest.raises(UserError, match=f"^{override.partition('=')[0]}=.* should be"):
        config(tmp_path, override)


@pytest.mark.parametrize("override", ["trainer.max_epochs=-1", "trainer.max_epochs=0",
                                      "loss.temperature=1e9", "sam.rho=1", "~callbacks.dashboard",
                                      "+optimizer.betas=[0.9,0.99]"])  # fmt: skip
def test_what_makes_sense_passes(override, tmp_path):
    config(tmp_path, override)


@pytest.mark.parametrize(
    "name,override,sentence",
    [
        ("eval", "compare=[]", "compare=[] should be of length 1 or more"),
        ("figures", "compare=[]", "compare=[] should be of length 1 or more"),
        ("train", "backbone.weights=", "backbone.weights= is empty: write a value"),
        ("train", "+trainer.check_val_every_n_epoch=0", "should be greater than or equal to 1"),
        ("train", "+callbacks.x=5", "callbacks.x=5 should be a group of keys"),
        ("eval", "ckpt=''", "ckpt= is empty"),
        ("export", "out=null", "out=null should be a valid string"),
        ("predict", "threshold=2", "threshold=2 should be less than or equal to 1"),
        ("eval", "batch_size=0", "batch_size=0 should be greater than or equal to 1"),
        ("demo", "port=70000", "port=70000 should be less than or equal to 65535"),
    ],
)
def test_settings_of_other_commands(name, override, sentence, tmp_path):
    fixed = ["figure=attention"] if name == "figures" else []
    with pytest.raises(UserError) as error:
        config(tmp_path, *fixed, override, name=name)
    assert sentence in str(error.value)


def test_the_home_folder_is_expanded_wherever_a_path_begins_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    made = config(tmp_path, "ckpt='~/a.ckpt'", "dataset.path='~/data'")
    assert made["ckpt"] == "/home/somebody/a.ckpt"
    assert made["dataset"]["path"] == "/home/somebody/data"
    made = config(tmp_path, "input=['~/a.jpg','b~/c.jpg']", name="predict")
    assert made["input"] == ["/home/somebody/a.jpg", "b~/c.jpg"]


def test_what_a_library_refuses_is_the_users_mistake_and_what_fails_in_ours_is_a_bug(monkeypatch):
    with pytest.raises(UserError, match="torch.nn.Linear cannot be built: .*out_features"):
        instantiate({"_target_": "torch.nn.Linear", "in_features": 2})
    partial = instantiate({"_target_": "torch.optim.Adam", "_partial_": True, "betas": [2, 2]})
    with pytest.raises(UserError, match="torch.optim.Adam cannot be built: Invalid beta"):
        partial([torch.nn.Parameter(torch.zeros(1))])

    def broken(number: int) -> None:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr("qcs.data.transforms.evaluation", broken)
    with pytest.raises(ValueError) as error:
        instantiate({"_target_": "qcs.data.transforms.evaluation", "number": 1})
    assert not isinstance(error.value, UserError)


def test_a_partial_says_what_it_takes():
    made = instantiate({"_target_": "qcs.training.schedules.one_cycle", "_partial_": True})
    assert "total_steps" in signature(made).parameters and made.__name__ == "one_cycle"


@pytest.mark.parametrize("node", [None, {}, {"size": 3}, {"_target_": None}])
def test_a_group_without_a_target_is_one_sentence(node):
    with pytest.raises(UserError, match="without a _target_ cannot be built"):
        instantiate(node)


@pytest.mark.parametrize("key", ["augment.train", "augment.eval", "model.roles"])
def test_what_was_taken_out_of_a_group_is_missed_before_training(key, tmp_path):
    parts = config(tmp_path, f"~{key}")
    with pytest.raises(UserError, match=f"{key} is not set"):
        build.datamodule(parts)
