"""A backbone, a loss and a data set of the user's own: trained, and loaded again where trusted."""

import pytest
import torch
from test_train import SMALL, qcs

import qcs as package
from conftest import three_colours
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError

MINE = """
from qcs.data.manifest import Manifest
from qcs.models import IR
from qcs.training.losses import QCSLoss

class TinyBackbone(IR):
    def __init__(self, width: int = 8) -> None:
        super().__init__((1, 1), (width, 2 * width), stem_stride=2)

class Loss(QCSLoss):
    pass

def read(path=None):
    return Manifest.from_csv(path, class_names=["red", "green", "blue"])
"""
OWN = ["backbone=own", "backbone._target_=mine_qcs.TinyBackbone", "+backbone.width=8"]
OWN += ["loss=own", "loss._target_=mine_qcs.Loss"]
DATA = ["dataset=own", "dataset._target_=mine_qcs.read"]
SIZES = [o for o in SMALL if not o.startswith("backbone")]
TRUST = "trust=[mine_qcs.TinyBackbone,mine_qcs.read]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("own")
    (top / "mine_qcs.py").write_text(MINE)
    three_colours(top).to_csv(top / "table.csv")
    return top


def test_a_run_that_could_not_be_loaded_is_refused_before_training(folder):
    given = [*SIZES, *OWN, *DATA, "dataset.path=table.csv", "hydra.run.dir=refused"]
    done = qcs("train", *given, cwd=folder, ok=False)
    assert "add trust=[mine_qcs.TinyBackbone]" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 2 and not list((folder / "refused").rglob("*.ckpt"))


def test_own_code_trains_and_loads_again_where_it_is_trusted(folder, monkeypatch):
    given = [*SIZES, *OWN, *DATA, "dataset.path=table.csv", TRUST, "hydra.run.dir=run"]
    qcs("train", *given, "trainer.max_epochs=1", "test=false", cwd=folder)
    ckpt = folder / "run/checkpoints/best.ckpt"
    recipe = torch.load(ckpt, weights_only=True)["qcs"]
    assert recipe["backbone"] == {"name": "mine_qcs.TinyBackbone", "width": 8}
    assert recipe["dataset"] == {"name": "mine_qcs.read"} and "table.csv" not in str(recipe)
    with pytest.raises(UserError, match="not trusted"):
        package.load(ckpt)
    monkeypatch.syspath_prepend(str(folder))
    checkpoint = load_checkpoint(ckpt, ["mine_qcs.TinyBackbone", "mine_qcs.read"])
    assert type(checkpoint.network.base.backbone).__name__ == "TinyBackbone"
    found = ["eval", f"ckpt={ckpt}", "num_workers=0", "resamples=10", "hydra.run.dir=e"]
    done = qcs(*found, TRUST, cwd=folder, ok=False)
    assert "dataset.path is not set" in done.stderr
    qcs(*found, TRUST, "dataset.path=table.csv", cwd=folder)
    assert (folder / "e/metrics.json").is_file()
