"""Every file in conf/ composes and instantiates; what a user mistypes is one sentence."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from qcs.config.errors import UserError
from qcs.config.options import CONF, instantiate, plain
from qcs.config.validation import problem
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
        return plain(compose(name, [*overrides, f"run_dir={tmp_path}"]))


def choices(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml"))


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
    parts["model"]["num_classes"] = 7
    network = build.network(parts)
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
        make = build._scheduler(parts["scheduler"])["schedule"]
        if make:
            steps = {"total_steps": 20} if parts["scheduler"]["interval"] == "step" else {}
            assert make(optimizer, **steps).get_last_lr()[0] > 0


@pytest.mark.parametrize(
    "override,sentence",
    [
        ("loader.batch_size=many", "loader.batch_size='many' is a str, expected int"),
        ("loader.negatives=all", "loader.negatives='all' should be one of"),
        ("model.cross.similarity.mode=sum", "model.cross.similarity.mode='sum' should be one of"),
        ("model.cross.drop=lots", "model.cross.drop='lots' is a str, expected float"),
        ("sam.rho=big", "sam.rho='big' is a str, expected float"),
        ("seed=1.5", "seed=1.5 is a float, expected int"),
        ("select_on=train", "select_on='train' should be one of"),
        ("+loss.alpha=1", "loss.alpha is not an option; loss takes"),
        ("+model.cross.similarity.alpha=1", "model.cross.similarity.alpha is not an option"),
        ("+optimizer.momentum=0.9", "optimizer.momentum is not an option"),
        ("optimizer.lr=fast", "optimizer.lr='fast' is a str"),
        ("loss._target_=qcs.training.losses.Nothing", "cannot be imported"),
        ("+nonsense=1", "nonsense is not an option"),
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


@pytest.mark.parametrize(
    "value,hint,fits",
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("a", str, True),
        (None, int | None, True),
        ([1], list[int], True),
        ("x", list[int], False),
        ({}, dict | None, True),
    ],
)
def test_types(value, hint, fits):
    assert (problem(value, hint, "key") is None) == fits
