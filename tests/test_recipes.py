"""The published settings, typed out again from tests/fixtures/parity/RECIPES.md, and ablations."""

import pytest

from qcs import build, weights
from qcs.config import CONF
from qcs.models import IR
from test_config import choices, config

# epochs, batch, lr, resize, rotation, jitter, erased area from, anchors an epoch, negatives,
# dropout base and cross, dropout after the attention base and cross, residual
RECIPES = {
    "qcs_rafdb": (200, 24, 3e-6, 224, 0, 1, 0.02, None, "by_sample", (0, 0), (0, 0), "normed"),
    "qcs_ferplus": (150, 24, 3.5e-6, 232, 10, 1, 0.02, None, "by_sample", (0, 0.2), (0, 0.2),
                    "normed"),
    "qcs_affectnet7": (150, 24, 4e-6, 236, 12, 1, 0.03, 283901 // 12, "by_class", (0, 0.4), (0, 0),
                       "normed"),
    "qcs_affectnet8": (100, 24, 4e-6, 236, 12, 1, 0.03, 287651 // 12, "by_class", (0, 0), (0, 0),
                       "normed"),
    "dcs_rafdb": (200, 48, 9e-6, 224, 0, 1, 0.02, None, None, (0, 0.2), (0, 0), "normed"),
    "dcs_ferplus": (150, 24, 8e-6, 234, 10, 1, 0.02, None, None, (0, 0.2), (0, 0.2), "prenorm"),
    "dcs_affectnet7": (100, 48, 9e-6, 236, 12, 1, 0.03, 283901 // 8, None, (0, 0.4), (0, 0),
                       "normed"),
    "dcs_affectnet8": (50, 48, 8e-6, 224, 0, 0, 0.02, 287651 // 8, None, (0.2, 0.5), (0.2, 0.5),
                       "prenorm"),
}  # fmt: skip
RECIPES["qcs_rafdb_pretrained"] = RECIPES["qcs_rafdb"]
RECIPES["qcs_ferplus_pretrained"] = RECIPES["qcs_ferplus"]


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_holds_the_published_values(name, tmp_path):
    c = config(tmp_path, f"experiment={name}", "backbone.weights=ir50.pth")
    epochs, batch, lr, resize, rotation, jitter, erase, anchors, negatives, *rest = RECIPES[name]
    drop, attention_drop, residual = rest
    loader, train, model = c["loader"], c["augment"]["train"], c["model"]
    assert (c["trainer"]["max_epochs"], loader["batch_size"]) == (epochs, batch)
    assert c["optimizer"] == {"_target_": "torch.optim.Adam", "_partial_": True, "lr": lr,
                              "weight_decay": 0.0}  # fmt: skip
    assert c["scheduler"]["interval"] == "epoch" and c["scheduler"]["schedule"]["gamma"] == 0.98
    assert c["sam"]["rho"] == 0.05 and not c["sam"]["adaptive"]
    assert train["resize"] == c["augment"]["eval"]["resize"] == resize and train["size"] == 224
    assert train["rotation"] == rotation
    assert train["jitter"] == ([0.2, 0.2, 0.2, 0.1] if jitter else [0, 0, 0, 0])
    assert train["erase_area"] == [erase, 0.1] and train["erase"] == 0.5
    assert loader["anchors"] == ("balanced" if anchors else "shuffle")
    assert loader["samples_per_epoch"] == anchors
    assert negatives in (None, loader["negatives"])
    halves = model["base"], model["cross"]
    assert tuple(h["drop"] for h in halves) == drop
    assert tuple(h["attention_drop"] for h in halves) == attention_drop
    assert model["cross"]["similarity"]["residual"] == residual
    assert model["roles"] == (4 if name.startswith("qcs") else 2)
    assert (model["embed_dim"], model["grid"], model["input_size"]) == (768, 7, 112)
    assert c["dataset"]["_target_"].split(".")[-2] in name
    assert c["dataset"].get("classes") in (None, int(name.split("_")[1][-1:] or 0)
                                           if "affectnet" in name else None)  # fmt: skip
    assert c["select_on"] == "test" and c["dataset"].get("train_on_val", True)


def test_every_recipe_is_in_the_table():
    found = {n for n in choices("experiment") if n.startswith(("qcs_", "dcs_"))}
    assert found == set(RECIPES)


def test_fine_tuning_asks_for_its_weights(tmp_path):
    c = config(tmp_path, "experiment=qcs_rafdb_pretrained")
    with pytest.raises(FileNotFoundError, match=r"no weights at affectnet8\.ckpt"):
        weights.load_backbone(IR(), c["backbone"]["weights"])


def test_the_command_line_wins_over_a_recipe(tmp_path):
    c = config(tmp_path, "experiment=dcs_affectnet8", "dataset=csv", "sam.rho=0", "optimizer=adamw")
    assert c["dataset"]["_target_"].endswith("from_csv") and c["sam"]["rho"] == 0
    assert c["optimizer"]["_target_"] == "torch.optim.AdamW"


@pytest.mark.parametrize("experiment", ["ferplus_cpu", "dcs_affectnet8"])
@pytest.mark.parametrize("name", choices("ablation"))
def test_an_ablation_changes_one_thing_of_any_experiment(experiment, name, tmp_path):
    if experiment == "dcs_affectnet8" and name == "distance":  # a pair has no other class
        return
    small = ["backbone.units=[1,1,1]", "backbone.channels=[8,8,8]", "model.embed_dim=16"]
    plain = config(tmp_path, f"experiment={experiment}", *small)
    c = config(tmp_path, f"experiment={experiment}", f"ablation={name}", *small)
    changed = {k for k in c if c[k] != plain[k]}
    if name not in ("none", "sam", "plain", "dcs"):
        of_loss = "distillation" in name or name == "base_heavy"
        assert changed == ({"loss"} if of_loss else {"model"})
    c["model"]["num_classes"] = 3
    network = build.network(c)
    assert network.roles == {"base": 1, "dcs": 2}.get(name, plain["model"]["roles"])
    expected = {
        "base": lambda: network.cross is None,
        "no_cross": lambda: network.cross is None,
        "similarity": lambda: network.cross.attention[0].mode == "similarity",
        "distance": lambda: network.cross.attention[0].mode == "distance",
        "dot": lambda: network.cross.attention[0].mode == "dot",
        "sample_extremes": lambda: network.cross.attention[0].extremes == "sample",
        "no_residual": lambda: not network.cross.residual,
        "plain": lambda: c["sam"]["rho"] == 0,
        "sam": lambda: c["sam"]["rho"] == 0.05,
    }
    assert expected.get(name, lambda: True)()


def test_conf_names_the_command_of_each_experiment():
    for file in (CONF / "experiment").glob("[qd]cs_*.yaml"):
        text = file.read_text()
        assert f"python -m qcs.train experiment={file.stem} " in text and "Published: " in text
