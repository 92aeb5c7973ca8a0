"""The published settings as they compose, and ablations over any of them."""

import pytest
from test_options import choices, config

from qcs.config.errors import UserError
from qcs.data.datamodule import FaceDataModule
from qcs.training import build

RAF, FER, AFF = (224, 0, [0.02, 0.1]), (232, 10, [0.02, 0.1]), (236, 12, [0.03, 0.1])
FER_DCS = (234, 10, [0.02, 0.1])

# tests/fixtures/parity/RECIPES.md by hand: data set, roles, epochs, batch, lr, (resize, rotation,
# erased area), jitter, anchors, negatives, drop of base and cross, the latter also after attention,
# residual. N // 12 and N // 8 of AffectNet's 283,901 and 287,651 training images.
PUBLISHED = {
    "qcs_rafdb": ("rafdb", 4, 200, 24, 3e-6, RAF, True, None, "by_sample", 0, 0, 0, "normed"),
    "qcs_ferplus": (
        "ferplus",
        4,
        150,
        24,
        3.5e-6,
        FER,
        True,
        None,
        "by_sample",
        0,
        0.2,
        1,
        "normed",
    ),
    "qcs_affectnet7": (
        *("affectnet", 4, 150, 24, 4e-6, AFF, True),
        *(283_901 // 12, "by_class", 0, 0.4, 0, "normed"),
    ),
    "qcs_affectnet8": (
        *("affectnet", 4, 100, 24, 4e-6, AFF, True),
        *(287_651 // 12, "by_class", 0, 0, 1, "normed"),
    ),
    "dcs_rafdb": ("rafdb", 2, 200, 48, 9e-6, RAF, True, None, None, 0, 0.2, 0, "normed"),
    "dcs_ferplus": ("ferplus", 2, 150, 24, 8e-6, FER_DCS, True, None, None, 0, 0.2, 1, "prenorm"),
    "dcs_affectnet7": (
        *("affectnet", 2, 100, 48, 9e-6, AFF, True),
        *(283_901 // 8, None, 0, 0.4, 0, "normed"),
    ),
    "dcs_affectnet8": (
        *("affectnet", 2, 50, 48, 8e-6, RAF, False),
        *(287_651 // 8, None, 0.2, 0.5, 1, "prenorm"),
    ),
}
# tests/fixtures/poster/POSTER.md, section 9, by hand: data set, lr, probability and area of erasing
# and anchors. All: 200 epochs, batch 144, SAM 0.05 around Adam without weight decay, 0.98 an epoch,
# resize to 224 and flip alone.
POSTER = {
    "poster_rafdb": ("rafdb", 3.5e-5, 0.5, [0.02, 0.1], "shuffle"),
    "poster_affectnet7": ("affectnet", 1e-6, 1, [0.05, 0.05], "balanced"),
    "poster_affectnet8": ("affectnet", 1e-6, 1, [0.05, 0.05], "balanced"),
}
PUBLISHED |= {f"{name}_pretrained": PUBLISHED[name] for name in ("qcs_rafdb", "qcs_ferplus")}
ABLATED = {  # the one option of each file
    "none": {},
    "similarity": {"model.cross.similarity.mode": "similarity"},
    "distance": {"model.cross.similarity.mode": "distance"},
    "dot": {"model.cross.similarity.mode": "dot"},
    "prenorm": {"model.cross.similarity.residual": "prenorm"},
    "sample_extremes": {"model.cross.similarity.extremes": "sample"},
    "no_residual": {"model.cross.residual": False},
    "no_cross": {"model.cross": None, "model.roles": 4},
    "dcs": {"model.roles": 2},
    "base": {"model.cross": None, "model.roles": 1},
    "logit_distillation": {"loss.logit_weight": 1.0},
    "feature_distillation": {"loss.feature_weight": 0.1},
    "base_heavy": {"loss.base_weight": 3.0},
    "plain": {"sam.rho": 0.0},
    "sam": {"sam.rho": 0.05},
}


def value(parts: dict, key: str):
    for name in key.split("."):
        parts = parts[name]
    return parts


def flat(parts, prefix: str = "") -> dict:
    if not isinstance(parts, dict):
        return {prefix: parts}
    return {k: v for name, p in parts.items() for k, v in flat(p, f"{prefix}.{name}").items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_values(name, tmp_path):
    parts = config(tmp_path, f"experiment={name}", "backbone.weights=file.pth")
    data, roles, epochs, batch, lr, (resize, rotation, area), jitter, anchors, negatives, *rest = (
        PUBLISHED[name]
    )
    base_drop, cross_drop, after_attention, residual = rest
    train, evaluation = parts["augment"]["train"], parts["augment"]["eval"]
    assert parts["dataset"]["_target_"] == f"qcs.data.sources.{data}.read"
    assert parts["dataset"].get("train_on_val", False) == (data == "ferplus")
    assert parts["dataset"].get("classes", 7) == (8 if "affectnet8" in name else 7)
    assert (train["size"], evaluation["size"]) == (224, 224)  # the crop, where resize is more
    assert (train["resize"], evaluation["resize"]) == (resize, resize)
    assert (train["rotation"], train["erase_area"], train["flip"]) == (rotation, area, 0.5)
    assert train["jitter"] == ([0.2, 0.2, 0.2, 0.1] if jitter else [0, 0, 0, 0])
    loader, model = parts["loader"], parts["model"]
    assert (loader["batch_size"], parts["trainer"]["max_epochs"]) == (batch, epochs)
    assert loader["samples_per_epoch"] == anchors
    assert loader["anchors"] == ("balanced" if anchors else "shuffle")
    assert loader["negatives"] == (negatives or "by_sample")
    assert (model["roles"], model["embed_dim"], model["base"]["depth"]) == (roles, 768, 2)
    drops = [(h["drop"], h["attention_drop"]) for h in (model["base"], model["cross"])]
    assert drops == [(d, d * after_attention) for d in (base_drop, cross_drop)]
    similarity = model["cross"]["similarity"]
    assert similarity == {"mode": "both", "extremes": "batch", "residual": residual}
    backbone = parts["backbone"]
    assert (backbone["units"], backbone["channels"]) == ([3, 4, 14], [64, 128, 256])
    optimizer = parts["optimizer"]
    assert (optimizer["_target_"], optimizer["weight_decay"]) == ("torch.optim.Adam", 0)
    assert optimizer["lr"] == lr
    assert parts["scheduler"]["schedule"]["gamma"] == 0.98
    assert (parts["sam"]["rho"], parts["sam"]["adaptive"]) == (0.05, False)
    assert (parts["select_on"], parts["gradient_clip_norm"]) == ("test", None)
    assert parts["loss"]["label_smoothing"] == 0 and parts["loss"]["class_weights"] is None


@pytest.mark.parametrize("name", POSTER)
def test_a_recipe_of_poster_holds_the_published_values(name, tmp_path):
    parts = config(tmp_path, f"experiment={name}")
    data, lr, erase, area, anchors = POSTER[name]
    train, evaluation = parts["augment"]["train"], parts["augment"]["eval"]
    loader, model, optimizer = parts["loader"], parts["model"], parts["optimizer"]
    assert parts["dataset"]["_target_"] == f"qcs.data.sources.{data}.read"
    assert parts["dataset"].get("classes", 7) == (8 if "affectnet8" in name else 7)
    assert {train["size"], train["resize"], evaluation["size"], evaluation["resize"]} == {224}
    assert (train["flip"], train["rotation"], train["jitter"]) == (0.5, 0, [0, 0, 0, 0])
    assert (train["erase"], train["erase_area"]) == (erase, area)
    assert (loader["batch_size"], parts["trainer"]["max_epochs"]) == (144, 200)
    assert (loader["anchors"], loader["samples_per_epoch"]) == (anchors, None)  # as many as images
    assert (model["roles"], model["cross"], model["embed_dim"]) == (1, None, 768)
    assert (model["input_size"], model["grid"], model["num_heads"]) == (112, 7, 8)
    landmarks = {"weights": None, "head_size": 32, "drop_path": 0.25}
    base = {"depth": 2, "drop": 0, "attention_drop": 0, "landmarks": landmarks}
    assert model["base"] == base
    assert parts["backbone"]["units"] == [3, 4, 14]
    assert (optimizer["_target_"], optimizer["weight_decay"]) == ("torch.optim.Adam", 0)
    assert (optimizer["lr"], parts["scheduler"]["schedule"]["gamma"]) == (lr, 0.98)
    assert (parts["sam"]["rho"], parts["sam"]["adaptive"]) == (0.05, False)
    assert parts["loss"]["label_smoothing"] == 0 and parts["loss"]["class_weights"] is None
    assert (parts["select_on"], parts["gradient_clip_norm"]) == ("test", None)


def test_every_published_setting_has_a_file():
    families = ("qcs_", "dcs_", "poster_")
    assert {*PUBLISHED, *POSTER} == {c for c in choices("experiment") if c.startswith(families)}


@pytest.mark.parametrize("name", ["qcs_rafdb_pretrained", "qcs_ferplus_pretrained"])
def test_a_fine_tuning_does_not_start_without_its_checkpoint(name, faces, tmp_path):
    parts = config(tmp_path, f"experiment={name}", "loader.num_workers=0", "augment.train.by=image")
    data = FaceDataModule(faces, None, None)
    with pytest.raises(UserError, match="backbone.weights=affectnet8.ckpt"):
        build.module(parts, data)


def test_select_on_test_trains_on_all_training_images(faces, tmp_path):
    validated = faces.select((faces.splits != "val").nonzero()[0])
    data = {s: FaceDataModule(validated, None, None, select_on=s) for s in ("test", "val")}
    assert len(data["test"].train) == 36 and len(data["val"].train) < 36


def test_the_command_line_wins_over_nested_experiments(tmp_path):
    overrides = ["model=dcs", "dataset.train_on_val=false", "trainer.max_epochs=3"]
    parts = config(tmp_path, "experiment=qcs_ferplus_pretrained", *overrides)
    assert parts["model"]["roles"] == 2 and parts["model"]["embed_dim"] == 768
    assert parts["model"]["cross"]["drop"] == 0.2 and not parts["dataset"]["train_on_val"]
    assert parts["trainer"]["max_epochs"] == 3 and parts["optimizer"]["lr"] == 3.5e-6
    other = config(tmp_path, "experiment=qcs_rafdb", "dataset=csv", "ablation=base", "sam.rho=0.1")
    assert other["model"]["roles"] == 1 and other["sam"]["rho"] == 0.1
    assert other["dataset"]["_target_"].endswith("from_csv")


def test_every_ablation_is_here():
    assert set(ABLATED) == set(choices("ablation"))


@pytest.mark.parametrize("name", ABLATED)
def test_an_ablation_wins_over_the_experiment_and_changes_nothing_else(name, tmp_path):
    experiment = "qcs_affectnet7" if name == "distance" else "dcs_affectnet8"
    if name == "no_cross":
        experiment = "qcs_ferplus"
    plain = config(tmp_path, f"experiment={experiment}")
    parts = config(tmp_path, f"experiment={experiment}", f"ablation={name}")
    assert {key: value(parts, key) for key in ABLATED[name]} == ABLATED[name]
    ours, theirs = flat(parts), flat(plain)
    changed = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
    assert all(any(k.startswith(f".{key}") for key in ABLATED[name]) for k in changed), changed


@pytest.mark.parametrize("name", choices("ablation"))
def test_an_ablated_network_builds(name, tmp_path):
    """From the default experiment: command line, ablation and small network together."""
    parts = config(tmp_path, f"ablation={name}", "model.embed_dim=16", "model.num_heads=2")
    network = build.network(parts, range(7))
    assert network.roles == parts["model"]["roles"]
    assert (network.cross is None) == (parts["model"]["cross"] is None)
