"""Reports: what is written first, what is refused, and a picture that cannot be drawn."""

import json

import pytest
import torch

from qcs.config.errors import UserError
from qcs.evaluation import report
from qcs.evaluation.files import write_csv, write_json

ABOUT = {"dataset": "d", "split": "test", "ckpt": "c", "selected_on": "val"}


@pytest.fixture
def answers(faces):
    test = faces.split("test")
    labels = torch.from_numpy(test.labels)
    return torch.nn.functional.one_hot(labels, 3).float(), labels, test


def test_a_picture_that_fails_costs_no_number(answers, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        assert (tmp_path / "metrics.json").exists() and (tmp_path / "predictions.csv").exists()
        raise RuntimeError("no font")

    for name in ("confusion", "face_sheet"):
        monkeypatch.setattr(report.plots, name, fail)
    monkeypatch.setattr(report.plots, "reliability", lambda found, path, title: path.touch())
    result = report.write(tmp_path, *answers, ABOUT, 10)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert caplog.text.count("could not be drawn") == 3 and "no font" in caplog.text
    page = (tmp_path / "report.md").read_text()
    assert "(reliability.png)" in page and "(confusion.png)" not in page


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_answers_that_are_not_finite_are_refused(value, answers, tmp_path):
    logits, labels, test = answers
    logits[4, 1] = value
    with pytest.raises(UserError, match=f"for 1 of 9 images of .*, the first is {test.paths[4]}"):
        report.write(tmp_path / "out", logits, labels, test, ABOUT, 10)
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_ruled_out_is_finite(answers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "try_to_draw", lambda draw, path: False)
    logits, labels, test = answers
    logits[:, 2] = -torch.inf
    assert report.write(tmp_path, logits, labels, test, ABOUT, 10)["acc"] == pytest.approx(
        2 / 3, abs=1e-6
    )


def test_files_that_cannot_be_written_are_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/x.json"):
        write_json(tmp_path / "file" / "x.json", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    write_csv(tmp_path / "x.csv", ["a"], [["caf\udce9"], ["=1"]])
    assert (tmp_path / "x.csv").read_bytes() == b"a\r\ncaf\\udce9\r\n'=1\r\n"
