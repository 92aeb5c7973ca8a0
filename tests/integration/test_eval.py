"""Reports: intervals, calibration, classes by name, comparisons of several checkpoints."""

import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from test_train import qcs
from torchmetrics.functional.classification import multiclass_calibration_error

from conftest import tiny_checkpoint, tiny_network
from qcs import eval as entry
from qcs.config.errors import UserError
from qcs.data.classes import canonical, match_classes
from qcs.data.manifest import Manifest
from qcs.data.transforms import evaluation
from qcs.evaluation import report
from qcs.evaluation.apply import apply
from qcs.evaluation.compare import Member, compare
from qcs.evaluation.intervals import bootstrap, paired
from qcs.evaluation.metrics import calibration, confusion_matrix, scores

COLOURS = ["red", "green", "blue"]
PICTURES = {"confusion.png", "reliability.png", "faces.png", "hardest.png"}


def random_logits(number: int = 200, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (number,), generator=generator)
    logits = torch.randn(number, classes, generator=generator)
    logits[torch.arange(number), labels] += 1
    return logits, labels


# -- numbers -----------------------------------------------------------------------------


def _reference_bootstrap(predictions, labels, classes, resamples):
    """Images drawn anew in a plain loop."""
    rng, found = np.random.default_rng(1), []
    for _ in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        matrix = confusion_matrix(predictions[rows], labels[rows], classes)
        found.append([scores(matrix)[k].item() for k in ("acc", "mean_acc", "f1")])
    return np.quantile(found, [0.025, 0.975], axis=0)


def test_intervals_are_those_of_images_drawn_anew():
    logits, labels = random_logits()
    matrix = confusion_matrix(logits.argmax(1), labels, 4)
    overall = bootstrap(matrix, 4000)
    low, high = _reference_bootstrap(logits.argmax(1), labels, 4, 4000)
    got = torch.stack([overall["acc"], overall["mean_acc"], overall["f1"]])
    np.testing.assert_allclose(got[:, 0], low, atol=0.012)
    np.testing.assert_allclose(got[:, 1], high, atol=0.012)
    assert torch.equal(bootstrap(matrix, 4000)["f1"], overall["f1"])  # seeded
    with pytest.raises(UserError, match="resamples must be 1 or more"):
        bootstrap(matrix, 0)


def test_scores_of_many_matrices_are_those_of_each():
    matrices = torch.randint(0, 9, (5, 3, 3), generator=torch.Generator().manual_seed(0))
    for key, values in scores(matrices).items():
        torch.testing.assert_close(values, torch.stack([scores(m)[key] for m in matrices]))


def test_calibration_is_torchmetrics():
    logits, labels = random_logits(1000)
    probabilities = logits.softmax(1)
    found = calibration(probabilities, labels, bins=15)
    expected = multiclass_calibration_error(probabilities, labels, 4, n_bins=15, norm="l1")
    assert found["ece"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert found["count"].sum() == 1000


def _reference_mcnemar(first, second):
    """The exact binomial test of the images on which two networks differ."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    number, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(number, k) for k in range(least + 1)) / 2**number
    return min(1.0, 2 * tail)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06])
def test_the_paired_test_of_two_networks_is_mcnemars(shift):
    rng = np.random.default_rng(5)
    first = torch.from_numpy(rng.random(400) < 0.8)
    flips = torch.from_numpy(rng.random(400) < 0.1)
    second = (first ^ flips) | torch.from_numpy(rng.random(400) < shift)
    found = paired(first[None], second[None])
    assert found["difference"] == pytest.approx((second.float() - first.float()).mean().item())
    assert found["p"] == pytest.approx(_reference_mcnemar(first, second), abs=0.02)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]


def test_groups_have_a_mean_a_spread_and_a_difference():
    def member(name, correct):
        correct = torch.tensor(correct)
        acc = correct.float().mean().item()
        intervals = {"acc": [acc - 0.1, acc + 0.1]}
        numbers = {"acc": acc, "mean_acc": acc, "f1": acc, "ece": 0.1, "intervals": intervals}
        return Member(name, numbers, correct)

    good, bad = [True] * 30 + [False] * 10, [True] * 10 + [False] * 30
    groups = {"a": [member("a0", good), member("a1", bad)], "b": [member("b0", bad)]}
    one, other = compare(groups)
    assert one["acc"]["mean"] == 0.5 and one["acc"]["sd"] == pytest.approx(0.353553)
    assert one["against"] is None and other["acc"]["sd"] is None
    assert other["against"]["difference"] == pytest.approx(-0.25) and other["against"]["p"] < 0.01


# -- classes by name ---------------------------------------------------------------------


def faces_of(names: list[str], labels: list[int], **columns) -> Manifest:
    rows = [(f"{i}.png", label, "test") for i, label in enumerate(labels)]
    return Manifest.build("folder", rows, names, **columns)


def test_classes_are_matched_by_name():
    data = faces_of(["Sad", "happy ", "NEUTRAL"], [0, 1, 2, 1])
    found = match_classes(data, ("Neutral", "Happiness", "Sadness", "Contempt"))
    assert found.data.labels.tolist() == [2, 1, 0, 1] and found.lacking == ["Contempt"]
    assert found.names == {"Sad": "Sadness", "happy ": "Happiness", "NEUTRAL": "Neutral"}
    assert canonical("Very_Angry") != canonical("Angry") == "anger"


def test_images_of_unknown_classes_are_left_out():
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    data = faces_of(["contempt", "anger", "fear"], [0, 1, 2, 1], targets=targets)
    found = match_classes(data, ("Fear", "Anger"))
    assert found.left_out == {"contempt": 1} and found.data.labels.tolist() == [1, 0, 1]
    assert found.data.paths.tolist() == ["1.png", "2.png", "3.png"] and found.data.targets is None


def test_too_few_common_classes_are_refused():
    with pytest.raises(UserError, match="fewer than two classes in common by name"):
        match_classes(faces_of(["anger", "boredom"], [0, 1]), ("Fear", "Anger"))
    with pytest.raises(UserError, match="two classes have one name"):
        match_classes(faces_of(["happy", "Happiness"], [0, 1]), ("Fear", "Anger"))
    own = ("happy", "Happiness")  # as it was trained, so it can be evaluated
    assert match_classes(faces_of(list(own), [0, 1]), own[::-1]).data.labels.tolist() == [1, 0]


# -- reports -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt")


def config(model, table, folder, **changes) -> dict:
    """What conf/eval.yaml composes to."""
    target = "qcs.data.manifest.Manifest.from_csv"
    data = {"_target_": target, "path": str(table), "class_names": COLOURS}
    given = {"ckpt": str(model), "compare": None, "dataset": data, "store": None, "device": "cpu"}
    given |= {
        "split": "test",
        "batch_size": 4,
        "num_workers": 0,
        "flip": False,
        "form": "eager",
        "format": "png",
    }
    return given | {"restrict": False, "resamples": 100, "run_dir": str(folder)} | changes


def test_a_report_holds_together(model, faces_table, tmp_path):
    (result,) = entry.evaluate(config(model, faces_table, tmp_path))
    names = {p.name for p in tmp_path.iterdir()}
    assert names == PICTURES | {"metrics.json", "confusion.json", "predictions.csv", "report.md"}
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["correct"]) for row in rows) / len(rows) == pytest.approx(
        result["acc"], abs=1e-6
    )
    for row in rows:
        shares = {name: float(row[f"p_{name}"]) for name in COLOURS}
        assert max(shares, key=shares.get) == row["prediction"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    low, high = result["intervals"]["acc"]
    assert low <= result["acc"] <= high and low < high
    page = (tmp_path / "report.md").read_text()
    assert f"{100 * result['acc']:.2f} ({100 * low:.2f} to {100 * high:.2f})" in page
    assert all(f"({name})" in page for name in PICTURES) and "| blue | 3 |" in page


def test_the_worst_mistakes_come_first(faces, tmp_path, monkeypatch):
    sheets = {}
    keep = lambda images, titles, path, *rest: sheets.update({path.name: titles})  # noqa: E731
    monkeypatch.setattr(report.plots, "face_sheet", keep)
    test = faces.split("test")
    logits = torch.full((9, 3), -1.0)
    labels = torch.from_numpy(test.labels)
    logits[torch.arange(9), labels] = 1.0
    logits[4] = torch.tensor([9.0, 0.0, 0.0])  # a green one, surely red
    logits[8] = torch.tensor([1.0, 0.0, 0.5])  # a blue one, perhaps red
    about = {"dataset": "d", "split": "test", "ckpt": "c", "selected_on": "val"}
    report.write(tmp_path, logits, labels, test, about, 10)
    assert [t.split()[0] + t.split("is ")[1].split()[0] for t in sheets["hardest.png"]] == [
        "redgreen",
        "redblue",
    ]


def test_flip_averages_an_image_and_its_mirror(faces):
    network, transform = tiny_network().eval(), evaluation(16)
    plain = apply(network, faces, transform, batch_size=7)
    seen = []

    def mirrored(images):
        seen.append(len(images))
        return network(images.flip(-1))

    expected = (plain + apply(mirrored, faces, transform, batch_size=7)) / 2
    got = apply(network, faces, transform, batch_size=7, flip=True)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(got, plain, atol=1e-4)


def test_another_order_of_classes_changes_nothing(model, faces_table, tmp_path):
    (one,) = entry.evaluate(config(model, faces_table, tmp_path / "one"))
    data = config(model, faces_table, tmp_path)["dataset"] | {
        "class_names": ["blue", "red", "green"]
    }
    (other,) = entry.evaluate(config(model, faces_table, tmp_path / "other", dataset=data))
    assert one["classes"] == other["classes"] and one["acc"] == other["acc"]


def test_classes_that_one_side_lacks(model, faces_table, tmp_path, caplog):
    """The data set has yellow in the place of blue, which the checkpoint does not know."""
    lines = faces_table.read_text().replace(",blue,", ",yellow,")
    table = faces_table.parent / "yellow.csv"
    table.write_text(lines)
    data = {"_target_": "qcs.data.manifest.Manifest.from_csv", "path": str(table)}
    given = config(model, table, tmp_path / "free", dataset=data)
    (free,) = entry.evaluate(given)
    assert free["images"] == 6 and free["left_out"] == {"yellow": 3}
    assert free["without_images"] == ["blue"] and "left out 3 images of yellow" in caplog.text
    given |= {"restrict": True, "run_dir": str(tmp_path / "bound")}
    (bound,) = entry.evaluate(given)
    counts = json.loads((tmp_path / "bound/confusion.json").read_text())["rows_are_true"]
    assert np.array(counts)[:, 2].sum() == 0 and bound["restricted"]
    free_counts = json.loads((tmp_path / "free/confusion.json").read_text())["rows_are_true"]
    assert np.array(free_counts)[:, 2].sum() > 0  # untrained, it says blue at times


def test_several_checkpoints_in_one_table(model, faces_table, tmp_path):
    """Through the command line: a pattern, a list, names."""
    for seed in range(3):
        content = torch.load(model, weights_only=True)
        head = "network.base.encoder.head.weight"
        generator = torch.Generator().manual_seed(seed)
        content["state_dict"][head] = torch.randn(3, 16, generator=generator)
        torch.save(content, tmp_path / f"seed{seed}.ckpt")
    data = ["dataset=csv", f"dataset.path={faces_table}", "dataset.class_names=[red,green,blue]"]
    given = [*data, "num_workers=0", "store=null", "resamples=50", "hydra.run.dir=out"]
    named = f"compare={{seeds:seed*.ckpt,first:{model}}}"
    done = qcs("eval", named, *given, cwd=tmp_path)
    assert "seeds" in done.stdout and "±" in done.stdout
    found = json.loads((tmp_path / "out/compare.json").read_text())
    seeds, first = found["groups"]
    each = [json.loads((tmp_path / f"out/seeds-{n}/metrics.json").read_text()) for n in range(3)]
    values = [one["acc"] for one in each]
    assert seeds["acc"]["values"] == values and found["images"] == 9
    assert seeds["acc"]["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert seeds["against"] is None and 0 < first["against"]["p"] <= 1
    alone = json.loads((tmp_path / "out/first-0/metrics.json").read_text())["acc"]
    assert first["against"]["difference"] == pytest.approx(alone - np.mean(values), abs=1e-6)
    page = (tmp_path / "out/compare.md").read_text()
    assert "| seeds | 3 |" in page and "seed2.ckpt" in page


def test_checkpoints_of_other_classes_are_not_compared(model, faces_table, tmp_path):
    content = torch.load(model, weights_only=True)
    content["qcs"]["class_names"] = ["red", "green", "pink"]
    torch.save(content, tmp_path / "pink.ckpt")
    compared = {"a": str(model), "b": str(tmp_path / "pink.ckpt")}
    with pytest.raises(UserError, match="compare: the checkpoints know different classes"):
        entry.evaluate(config(None, faces_table, tmp_path, ckpt=None, compare=compared))


def hostile(faces_table, names) -> dict:
    """The three colours under other names."""
    table = faces_table.parent / "hostile.csv"
    with faces_table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(r | {"label": names[COLOURS.index(r["label"])]} for r in rows)
    target = "qcs.data.manifest.Manifest.from_csv"
    return {"_target_": target, "path": str(table), "class_names": names}


@pytest.mark.parametrize(
    "names",
    [
        ["[/]", "=cmd|' /C calc'!A0", "$x^{$"],
        ["<script>", "\x1b[31m", "\u9ad8\u5174 | \u0645\u0631"],
    ],
)
def test_any_class_name_is_reported(names, model, faces_table, tmp_path, capsys, caplog):
    content = torch.load(model, weights_only=True)
    content["qcs"]["class_names"] = names
    torch.save(content, tmp_path / "model.ckpt")
    out = tmp_path / "out"
    given = config(tmp_path / "model.ckpt", faces_table, out, dataset=hostile(faces_table, names))
    entry.evaluate(given | {"format": "svg"})
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warnings  # every picture was drawn
    assert list(json.loads((out / "metrics.json").read_text())["classes"]) == names
    page, table = (out / "report.md").read_text(), (out / "predictions.csv").read_text()
    printed = capsys.readouterr().out
    assert not {"<script>", "\x1b[31m"} & set(page.split()) and "\x1b[31m" not in printed + table
    assert not [cell for row in csv.reader(table.splitlines()) for cell in row if cell[0] == "="]
    widths = {line.count("|") for line in page.splitlines() if line.startswith("| ")}
    assert widths == {3, 6} and "(hardest.svg)" in page
    if "[/]" in names:
        assert (
            "[/]" in printed and r"\[/\]" in page and "$x^{$" in (out / "confusion.svg").read_text()
        )


def test_numbers_that_are_not_finite_are_not_reported(model, faces_table, tmp_path):
    content = torch.load(model, weights_only=True)
    content["state_dict"]["network.base.encoder.head.bias"][1] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match="its weights have numbers in .* that are not finite"):
        entry.evaluate(config(tmp_path / "nan.ckpt", faces_table, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_image_has_an_honest_interval(model, faces_table, tmp_path):
    lines = faces_table.read_text().splitlines()
    table = faces_table.parent / "one.csv"
    table.write_text("\n".join([lines[0], next(line for line in lines if "test" in line)]) + "\n")
    data = config(model, table, tmp_path)["dataset"]
    (result,) = entry.evaluate(config(model, table, tmp_path / "out", dataset=data))
    low, high = result["intervals"]["acc"]
    assert result["images"] == 1 and high - low > 0.7
    assert result["intervals"]["mean_acc"] == [None, None]


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"resamples": 0}, "resamples must be 1 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"device": "gpu"}, "device=gpu is not on this machine"),
        ({"split": "val", "ckpt": None, "compare": {}}, "names no checkpoint"),
    ],
)
def test_mistakes_in_numbers_are_sentences(changes, sentence, model, faces_table, tmp_path):
    with pytest.raises(UserError, match=sentence):
        entry.evaluate(config(model, faces_table, tmp_path, **changes))
