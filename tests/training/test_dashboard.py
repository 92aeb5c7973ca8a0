"""What a run shows: numbers and pictures in every logger and in its folder, at no cost to it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import SMALL, qcs
from torch.optim import SGD
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.data.datamodule import FaceDataModule
from qcs.data.sources import synthetic
from qcs.data.transforms import evaluation, unnormalised
from qcs.evaluation import report
from qcs.evaluation.faces import fixed_group
from qcs.training import loggers
from qcs.training.dashboard import Dashboard
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule

PICTURES = {"confusion.png", "attention.png"}
NUMBERS = {"train/gradient_norm", "train/images_per_second", "train/groups_per_second"}
NUMBERS |= {"train/theta_1", "train/theta_2"}


pytestmark = pytest.mark.usefixtures("one_thread")


class Shown(CSVLogger):
    """Remembers what it was given."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rows, self.images, self.tables = [], {}, {}

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_image(self, key, images, step=None):
        self.images.setdefault(key, []).extend(images)

    def log_table(self, key, columns, data, step=None):
        self.tables[key] = (columns, data)


def fit(faces, folder, callbacks=(), logger=False, epochs=3, network=None, **options):
    """Train a tiny network on three colours: the trainer and the module."""
    network = network or tiny_network()
    roles = network.roles
    select_on = options.pop("select_on", "val")
    data = FaceDataModule(
        faces, evaluation(16), evaluation(16), roles, 6, num_workers=0, select_on=select_on
    )
    module = QCSModule(network, QCSLoss(), lambda p: SGD(p, 0.05), faces.class_names, **options)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        default_root_dir=folder,
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer, module


def pictures(folder: Path) -> dict[str, set[str]]:
    return {d.name: {f.name for f in d.iterdir()} for d in (folder / "pictures").iterdir()}


def dropping():
    """A network with dropout, whose weights tell if a random number was taken from it."""
    return tiny_network(base={"drop": 0.2}, cross={"drop": 0.2})


@pytest.mark.parametrize("sam", [{"rho": 0.0}, {"rho": 0.05}])
def test_a_run_with_the_dashboard_has_the_weights_of_one_without(faces, tmp_path, sam):
    states = []
    for callbacks in ([], [Dashboard(every_n_epochs=1)]):
        _, module = fit(faces, tmp_path, callbacks, network=dropping(), sam=sam)
        states.append(module.network.state_dict())
        assert module.network.training
    assert len(pictures(tmp_path)) == 3
    for key, value in states[0].items():  # BatchNorm's statistics among them
        torch.testing.assert_close(states[1][key], value, atol=0, rtol=0)


def test_validation_scores_are_those_without_the_dashboard(faces, tmp_path):
    one, other = (fit(faces, tmp_path, c)[0] for c in ([], [Dashboard(every_n_epochs=1)]))
    assert one.callback_metrics["val/f1"] == other.callback_metrics["val/f1"]


def test_pictures_come_at_the_interval_and_after_the_last_epoch(faces, tmp_path):
    shown = Shown(tmp_path)
    fit(faces, tmp_path, [Dashboard(every_n_epochs=2)], shown)
    assert pictures(tmp_path) == {"epoch_002": PICTURES, "epoch_003": PICTURES}
    assert set(shown.images) == {"val/confusion", "val/attention"}
    assert all(Path(p).is_file() for paths in shown.images.values() for p in paths)


def test_zero_switches_pictures_off(faces, tmp_path):
    fit(faces, tmp_path, [Dashboard(every_n_epochs=0)], epochs=1)
    assert not (tmp_path / "pictures").exists()
    with pytest.raises(UserError, match="every_n_epochs must be 0"):
        Dashboard(every_n_epochs=-1)


@pytest.mark.parametrize(
    "options,files",
    [
        ({"roles": 1}, {"confusion.png"}),
        ({"roles": 2}, PICTURES),
        ({"roles": 4, "cross": None}, {"confusion.png"}),
        ({"roles": 4, "cross": {"similarity": {"mode": "dot"}}}, {"confusion.png"}),
    ],
)
def test_what_has_no_attention_draws_none(faces, tmp_path, options, files):
    shown = Shown(tmp_path)
    fit(faces, tmp_path, [Dashboard()], shown, 1, tiny_network(**options))
    assert pictures(tmp_path) == {"epoch_001": files}
    assert not any("theta" in key for _, row in shown.rows for key in row)


def test_without_validation_the_attention_is_of_training_faces(faces, tmp_path):
    fit(faces, tmp_path, [Dashboard()], epochs=1, select_on="last")
    assert pictures(tmp_path) == {"epoch_001": {"attention.png"}}


def test_numbers_come_at_log_steps_and_are_right(faces, tmp_path):
    shown, dashboard = Shown(tmp_path), Dashboard(every_n_epochs=0)
    _, module = fit(faces, tmp_path, [dashboard], shown, 2)
    rows = [(step, row) for step, row in shown.rows if "train/gradient_norm" in row]
    assert [step for step, _ in rows] == [1, 3, 5, 7, 9, 11]  # every second of 12 batches
    for _, row in rows:
        assert set(row) == NUMBERS and row["train/gradient_norm"] > 0
        assert row["train/images_per_second"] == 4 * row["train/groups_per_second"] > 0
    theta = [block.theta.item() for block in module.network.cross.attention]
    assert theta == [pytest.approx(rows[-1][1][f"train/theta_{i}"]) for i in (1, 2)]
    roles = {
        f"train/loss_{half}_{r}_step" for half in ("base", "cross") for r in ["a", "p", "n", "n2"]
    }
    assert roles <= {key for _, row in shown.rows for key in row}


def test_with_accumulation_numbers_come_with_the_optimiser_step(faces, tmp_path):
    shown = Shown(tmp_path)
    fit(faces, tmp_path, [Dashboard(0)], shown, 1, accumulate_grad_batches=3)
    assert [step for step, row in shown.rows if "train/theta_1" in row] == [2, 5]


def test_losses_by_role_average_to_their_half():
    from test_losses import LABELS, comparison

    parts = QCSLoss()(comparison(), LABELS)
    for half in ("base", "cross"):
        roles = torch.stack([parts[f"loss_{half}_{r}"] for r in ("a", "p", "n", "n2")])
        assert torch.equal(roles.mean(), parts[f"loss_{half}"])


def test_the_fixed_group_is_two_pairs_of_two_classes():
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    rows = fixed_group(labels, 4, seed=3)
    assert rows == fixed_group(labels, 4, seed=3) and len(set(rows)) == 4
    a, p, n, n2 = labels[rows]
    assert a == p != n == n2
    assert fixed_group(np.array([5]), 4, 0) == [0] * 4  # nothing else to draw


def test_pictures_show_the_pixels_of_the_file(faces):
    transform = evaluation(20)
    image = faces.image(0)
    seen = unnormalised(transform(image), transform)
    torch.testing.assert_close(seen, pil_to_tensor(image) / 255, atol=1e-5, rtol=0)


def test_a_report_shows_the_hardest_faces_first(faces, tmp_path, monkeypatch):
    sheets = {}
    keep = lambda i, t, path, *_: path.touch() or sheets.update({path: t})  # noqa: E731
    monkeypatch.setattr(report.plots, "face_sheet", keep)
    test = faces.split("test")
    logits = torch.zeros(len(test), 3)
    logits[4, (int(test.labels[4]) + 1) % 3] = 9.0  # one face is wrong, and sure of it
    labels, about = torch.from_numpy(test.labels), {"dataset": "colours", "split": "test"}
    result = report.write(tmp_path, logits, labels, test, about)
    wrong = test.class_names[(int(test.labels[4]) + 1) % 3]
    assert sheets[tmp_path / "hardest.png"][0].startswith(f"{wrong} 100 %\nis ")
    shown = Shown(tmp_path)
    loggers.log_report([shown], tmp_path, result, 7)
    columns, rows = shown.tables["test/classes"]
    assert columns[0] == "class" and [row[0] for row in rows] == list(faces.class_names)
    assert set(shown.images) == {"test/confusion", "test/reliability", "test/faces", "test/hardest"}


def test_without_tensorboard_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e .\.\[tensorboard\]"):
        loggers.tensorboard(str(tmp_path))


def test_checkpoints_carry_the_id_of_the_wandb_run(faces, monkeypatch):
    """Whatever callbacks run."""
    module = QCSModule(tiny_network(), QCSLoss(), lambda p: SGD(p, 0.05), faces.class_names)
    module.trainer = Trainer(logger=WandbLogger(id="abc123", offline=True), devices=1)
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["wandb_id"] == "abc123"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one epoch through the command line, with both loggers."""
    folder = tmp_path_factory.mktemp("dashboard")
    synthetic.make(folder / "faces", size=32, train=4, val=2, test=2, workers=1)
    options = ["trainer.max_epochs=1", "trainer.log_every_n_steps=2", "hydra.run.dir=run"]
    options += ["logger=[wandb,tensorboard]", "logger.wandb.id=abc123", "logger.wandb.tags=[first]"]
    options += ["callbacks.dashboard.upload_best=true", f"dataset.path={folder / 'faces'}"]
    qcs("train", *SMALL, *options, cwd=folder)
    return folder / "run"


def test_tensorboard_holds_scalars_and_pictures(run):
    tags = EventAccumulator(str(run / "tensorboard")).Reload().Tags()
    assert set(tags["scalars"]) >= NUMBERS
    assert {"train/loss_cross_n2_epoch", "val/acc", "test/acc", "lr-Adam"} <= set(tags["scalars"])
    report = {"test/confusion", "test/reliability", "test/faces", "test/hardest"}
    assert set(tags["images"]) == {"val/confusion", "val/attention"} | report
    assert "test/classes/text_summary" in tags["tensors"]


def test_an_offline_wandb_run_holds_the_same(run):
    (folder,) = (run / "wandb").glob("offline-run-*-abc123")
    media = {p.relative_to(folder / "files/media") for p in folder.rglob("media/**/*.*")}
    names = {str(p.with_name(p.name.split("_")[0])) for p in media}
    images = {
        "val/confusion",
        "val/attention",
        "test/confusion",
        "test/reliability",
        "test/faces",
        "test/hardest",
    }
    assert names == {f"images/{name}" for name in images} | {"table/test/classes"}
    (table,) = folder.rglob("*.table.json")
    assert len(json.loads(table.read_text())["data"]) == 7
    content = (folder / "run-abc123.wandb").read_bytes()
    expected = [*NUMBERS, "gradient_clip_norm", "first", "model-abc123"]
    assert not [key for key in expected if key.encode() not in content]
    for name in ("best", "last"):
        checkpoint = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["wandb_id"] == "abc123"


def test_the_same_pictures_are_in_the_folder(run):
    assert pictures(run) == {"epoch_001": PICTURES}
    assert {p.name for p in (run / "test").glob("*.png")} == {
        "confusion.png",
        "faces.png",
        "hardest.png",
        "reliability.png",
    }
