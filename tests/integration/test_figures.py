"""The paper's figures from checkpoints: what is drawn, where it comes from, what is refused."""

import csv

import matplotlib.image
import numpy as np
import pytest
import torch
from test_train import qcs

from conftest import tiny_checkpoint
from qcs import figures, plots
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.evaluation.faces import faces_by_class
from qcs.models.attention_maps import class_token_attention, pair_maps

COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt")


@pytest.fixture
def config(model, faces_table) -> dict:
    """What conf/figures.yaml composes to."""
    target = "qcs.data.manifest.Manifest.from_csv"
    data = {"_target_": target, "path": str(faces_table), "class_names": COLOURS}
    chosen = {"ckpt": str(model), "dataset": data, "compare": None, "runs": None, "level": None}
    numbers = {"seed": 0, "faces_per_class": 1, "max_faces": 2000, "batch_size": 4}
    return chosen | numbers | {"split": "test", "num_workers": 0, "device": "cpu", "store": None}


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """What the drawing functions are given, instead of drawing it."""
    given = {}
    for name in ("class_token_maps", "pair_grid", "confusion", "embedding", "curves"):
        record = lambda *a, n=name, **kw: given.update({n: (*a, *kw.values())})  # noqa: E731
        monkeypatch.setattr(plots, name, record)
    return given


def test_attention_is_on_the_same_faces_for_every_network(config, drawn, tmp_path):
    other = tiny_checkpoint(tmp_path / "base.ckpt", roles=1)
    compare = {"base": str(other), "qcs": config["ckpt"]}
    given = config | {"ckpt": None, "compare": compare, "faces_per_class": 2}
    figures.draw(given | {"figure": "attention"}, tmp_path / "x.png")
    pixels, maps, titles, _, rows, _, correct, columns = drawn["class_token_maps"]
    assert rows == ["base", "qcs"] and len(pixels) == 6 and maps.shape == (2, 6, 4)
    assert columns == ["red", "red", "green", "green", "blue", "blue"]
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 6))
    checkpoint = load_checkpoint(config["ckpt"])
    data = Manifest.from_csv(config["dataset"]["path"], class_names=COLOURS).split("test")
    chosen = faces_by_class(data, 0, 2)
    images = torch.stack([Faces(data, checkpoint.transform)[int(r)]["images"] for r in chosen])
    expected = class_token_attention(checkpoint.network, images).sum(1)
    torch.testing.assert_close(maps[1], expected)
    predicted = checkpoint.network(images).argmax(1)
    assert [title.split()[0] for title in titles[1]] == [COLOURS[p] for p in predicted]
    assert correct[1] == (predicted.numpy() == data.labels[chosen]).tolist()


def test_the_grid_shares_on_the_diagonal_and_tells_apart_elsewhere(config, drawn, tmp_path):
    figures.draw(config | {"level": 2} | {"figure": "pairs"}, tmp_path / "x.png")
    _, grid, names, _, _, partners = drawn["pair_grid"]
    assert names == COLOURS and grid.shape == (3, 3, 4) and len(partners) == 3
    checkpoint = load_checkpoint(config["ckpt"])
    data = Manifest.from_csv(config["dataset"]["path"], class_names=COLOURS).split("test")
    rows = faces_by_class(data, 0, 2)
    assert len(set(rows)) == 6
    images = torch.stack([Faces(data, checkpoint.transform)[int(r)]["images"] for r in rows])
    red, other_red, green = images[0], images[1], images[2]
    shared = pair_maps(checkpoint.network, torch.stack([red, other_red]))
    torch.testing.assert_close(grid[0, 0], shared[0, 1, 1])
    apart = pair_maps(checkpoint.network, torch.stack([red, green]), torch.eye(2).bool())
    torch.testing.assert_close(grid[0, 1], apart[0, 1, 1])
    torch.testing.assert_close(grid[1, 0], apart[1, 0, 1])


def test_confusion_counts_what_the_network_says(config, drawn, tmp_path):
    figures.draw(config | {"figure": "confusion"}, tmp_path / "x.png")
    matrix, names, *_ = drawn["confusion"]
    assert list(names) == COLOURS and matrix.sum(1).tolist() == [3, 3, 3]


def test_the_embedding_is_written_beside_its_picture(config, tmp_path):
    figures.draw(
        config | {"split": "train", "max_faces": 20} | {"figure": "embedding"},
        tmp_path / "embedding.png",
    )
    with (tmp_path / "embedding.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and all(row["path"].startswith("train-") for row in rows)
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert np.isfinite(points).all() and points.std() > 0
    assert matplotlib.image.imread(tmp_path / "embedding.png").std() > 0.01


def test_curves_are_read_by_epoch(tmp_path, config, drawn):
    for name, shift in {"one": 0.0, "two": 1.0}.items():
        (tmp_path / name / "csv").mkdir(parents=True)
        lines = [
            "epoch,step,train/loss_epoch,val/acc",
            "0,9,,0.5",
            f"0,9,{2 + shift},",
            "1,19,,0.6",
        ]
        (tmp_path / name / "csv/metrics.csv").write_text("\n".join(lines) + "\n,20,,\n")
    figures.draw(config | {"runs": str(tmp_path / "*")} | {"figure": "curves"}, tmp_path / "x.png")
    found = drawn["curves"][0]
    one, two = (found[str(tmp_path / name)] for name in ("one", "two"))
    assert one["val/acc"] == [(1.0, 0.5), (2.0, 0.6)] and two["train/loss_epoch"] == [(1.0, 3.0)]


def test_every_figure_is_drawn_by_its_command(config, tmp_path, faces_table):
    """Through Hydra: its name on the command line, its picture in the run's folder."""
    data = ["dataset=csv", f"dataset.path={faces_table}", "dataset.class_names=[red,green,blue]"]
    given = [f"ckpt={config['ckpt']}", *data, "num_workers=0", "store=null", "hydra.run.dir=out"]
    qcs("figures", "figure=pairs", *given, cwd=tmp_path)
    for name in ("attention", "confusion"):
        figures.draw(config | {"figure": name}, tmp_path / "out" / f"{name}.png")
    points = [(1.0, 0.5), (2.0, 0.25)]
    plots.curves({"run": {"train/loss_epoch": points}}, tmp_path / "out/curves.png")
    for name in ("pairs", "attention", "confusion", "curves"):
        picture = matplotlib.image.imread(tmp_path / "out" / f"{name}.png")
        assert picture.shape[0] > 200 and picture.std() > 0.01
    done = qcs("figures", "figure=portrait", *given, cwd=tmp_path, ok=False)
    assert "error: figure=\"portrait\" should be 'attention', 'pairs'" in done.stderr


@pytest.mark.parametrize(
    "figure,changes,sentence",
    [
        ("attention", {"ckpt": None}, "ckpt is not set"),
        ("attention", {"faces_per_class": 0}, "faces_per_class must be 1 or more"),
        ("pairs", {"level": 3}, "level=3: the network has levels 1 to 2"),
        ("pairs", {"compare": ["a.ckpt"]}, "figure=pairs takes one checkpoint"),
        ("attention", {"compare": ["a.ckpt"]}, "not both"),
        ("attention", {"ckpt": None, "compare": []}, "names no checkpoint"),
        ("curves", {}, "runs is not set"),
        ("curves", {"runs": []}, "runs is not set"),
        ("curves", {"runs": ["nowhere"]}, "runs are the folders that training wrote"),
        ("embedding", {"max_faces": 3}, "needs four faces and two classes"),
    ],
)
def test_a_mistake_is_one_sentence(figure, changes, sentence, config, tmp_path):
    with pytest.raises(UserError, match=sentence):
        figures.draw(config | changes | {"figure": figure}, tmp_path / "x.png")


def test_other_classes_are_refused(config, tmp_path):
    data = config["dataset"] | {"class_names": COLOURS[::-1]}
    with pytest.raises(UserError, match="needs the same, in the same order"):
        figures.draw(config | {"dataset": data} | {"figure": "confusion"}, tmp_path / "x.png")


def test_two_checkpoints_of_one_name_are_two_rows(config, drawn, tmp_path):
    for run in "ab":
        (tmp_path / run).mkdir()
        tiny_checkpoint(tmp_path / run / "best.ckpt")
    given = config | {"ckpt": None, "compare": [f"{tmp_path}/?/best.ckpt"]}
    figures.draw(given | {"figure": "attention"}, tmp_path)
    assert drawn["class_token_maps"][4] == ["a", "b"]


def test_a_network_without_finite_answers_is_not_drawn(config, tmp_path):
    content = torch.load(config["ckpt"], weights_only=True)
    content["state_dict"]["network.base.encoder.head.bias"][1] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    given = config | {"ckpt": str(tmp_path / "nan.ckpt")}
    for figure in ("attention", "confusion"):
        with pytest.raises(UserError, match="its weights have numbers in .* that are not finite"):
            figures.draw(given | {"figure": figure}, tmp_path / "x.png")


def test_lost_epochs_of_a_curve_are_named(config, drawn, tmp_path, caplog):
    (tmp_path / "csv").mkdir()
    lines = "epoch,step,train/loss_epoch\n0,9,2.0\n1,19,nan\n2,29,inf\n"
    (tmp_path / "csv/metrics.csv").write_text(lines)
    figures.draw(config | {"runs": [str(tmp_path)]} | {"figure": "curves"}, tmp_path / "x.png")
    assert "train/loss_epoch is not finite in 2 of 3 epochs, first in epoch 2:" in caplog.text
