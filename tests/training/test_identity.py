"""A run goes on as itself or not at all."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from qcs.config.errors import UserError
from qcs.training.identity import identity, require_same

CONFIG = {
    "seed": 0,
    "select_on": "val",
    "run_dir": "runs/a",
    "test": True,
    "ckpt": None,
    "backbone": {"_target_": "qcs.models.IR", "channels": [8, 16], "weights": None},
    "model": {"roles": 4, "cross": {"similarity": {"mode": "cosine"}}},
    "optimizer": {"lr": 0.001},
    "scheduler": {"interval": "epoch", "schedule": None},
    "sam": {"rho": 0.0},
    "loader": {"batch_size": 8, "num_workers": 2, "eval_batch_size": 128},
    "trainer": {"max_epochs": 9, "devices": 1, "precision": "32-true"},
    "callbacks": {
        "best": {"monitor": "val/acc", "dirpath": "runs/a/checkpoints"},
        "last": {"every_n_steps": None},
        "early_stopping": {"patience": 3},
    },
    "logger": {"csv": {"save_dir": "runs/a"}},
}
CKPT = Path("runs/a/checkpoints/last.ckpt")


def changed(key: str, value: object) -> dict:
    config = deepcopy(CONFIG)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[name] = value
    return config


@pytest.mark.parametrize(
    "key,value",
    [
        ("run_dir", "elsewhere"),
        ("test", False),
        ("loader.num_workers", 0),
        ("trainer.max_epochs", 20),
        ("trainer.devices", 2),
        ("logger", None),
        ("callbacks.last.every_n_steps", 100),
        ("callbacks.best.dirpath", "elsewhere"),
        ("callbacks.early_stopping", None),
        ("callbacks.dashboard", {"every_n_epochs": 3}),
        ("loss", {}),
    ],
)
def test_what_decides_no_weight_may_change(key, value, faces):
    require_same(identity(CONFIG, faces), identity(changed(key, value), faces), CKPT)


@pytest.mark.parametrize(
    "key,value",
    [
        ("optimizer.lr", 1e-6),
        ("backbone.channels", [8, 32]),
        ("backbone.weights", "faces.pt"),
        ("model.cross", None),
        ("model.cross.similarity.mode", "dot"),
        ("sam.rho", 0.05),
        ("loader.batch_size", 4),
        ("seed", 1),
        ("callbacks.early_stopping.patience", 9),
        ("callbacks.ema", {"_target_": "lightning.pytorch.callbacks.EMAWeightAveraging"}),
        ("loss", {"class_weights": "balanced"}),
    ],
)
def test_what_decides_the_weights_may_not_and_is_named(key, value, faces):
    with pytest.raises(UserError, match="cannot go on with other settings") as caught:
        require_same(identity(CONFIG, faces), identity(changed(key, value), faces), CKPT)
    assert key in str(caught.value)


def test_a_schedule_of_steps_keeps_its_length(faces):
    runs = []
    for epochs in (9, 20):
        config = changed("trainer.max_epochs", epochs)
        config["scheduler"] = {"interval": "step"}
        runs.append(identity(config, faces))
    with pytest.raises(UserError, match=r"trainer.max_epochs=20 \(the run has 9\)"):
        require_same(*runs, CKPT)


def test_other_data_of_the_same_name_is_another_run(faces, monkeypatch):
    run = identity(CONFIG, faces)
    require_same(run, identity(CONFIG, replace(faces, root=Path("moved") / faces.root.name)), CKPT)
    monkeypatch.chdir(faces.root)
    require_same(run, identity(CONFIG, replace(faces, root=Path())), CKPT)
    names = ("red", "green", "violet")
    for other in (
        replace(faces, class_names=names),
        faces.select(range(1, len(faces))),
        replace(faces, labels=faces.labels[::-1].copy()),
    ):
        with pytest.raises(UserError, match="was trained on other data: 54 images of 3 classes"):
            require_same(run, identity(CONFIG, other), CKPT)


def test_older_checkpoints_are_told_to_be_unchecked(faces, caplog):
    require_same(None, identity(CONFIG, faces), CKPT)
    assert "does not say what it was trained with" in caplog.text
