"""`python -m qcs.check` and `python -m qcs.prepare` on names and files as users have them."""

import io
import json
import logging
import os
import shlex
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import three_colours
from qcs.check import check
from qcs.config.errors import UserError
from qcs.data import decoding, inspection
from qcs.data.manifest import Manifest
from qcs.data.store import StoreWriter
from qcs.prepare import prepare

CLASSES = ["[/]=cmd|calc", "$\\frac", "<script>\x1b[31m|\n", "笑 ü"]


def odd_faces(top: Path) -> Manifest:
    """A leaked image in each of four classes, with names that mean something to somebody."""
    root, rows = top / "[red] $x", []
    root.mkdir()
    for label, (split, numbers) in product(
        range(len(CLASSES)), {"train": (0, 1, 2), "test": (0, 9)}.items()
    ):
        for number in numbers:
            name = f"=[b]{split}{label}{number}\x1b.png"
            Image.new("RGB", (9, 9), (10 * number, 40 * label, 7)).save(root / name)
            rows.append((name, label, split))
    (root / "x\udcff.png").write_bytes(b"broken")
    Image.new("RGB", (9, 9), "white").save(root / "[b]\udcfe.png")
    rows += [("x\udcff.png", 0, "train"), ("[b]\udcfe.png", 1, "train")]
    return Manifest.build(root, rows, CLASSES)


def config(target: str, root: Path, out: Path, **more) -> dict:
    dataset = {"_target_": target, "path": str(root), **more.pop("dataset", {})}
    options = {"num_workers": 0, "sheet_faces": 2, "run_dir": str(out)}
    return {"dataset": dataset, **options, **more}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_that_mean_something_to_a_terminal_a_table_or_a_drawing(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "cp1252"))  # Windows' old terminal
    monkeypatch.setattr("qcs.plots.face_sheet", lambda *a: None)  # plots have tests of their own
    faces = odd_faces(tmp_path)
    monkeypatch.setattr("qcs.check.instantiate", lambda node: faces)
    check(config("", tmp_path, tmp_path / "out"))
    sys.stdout.flush()
    screen = raw.getvalue().decode("cp1252")
    assert "\x1b" not in screen and "[/]=cmd|calc" in screen and r"<script>\x1b[31m|\n" in screen
    assert r"\u7b11" in screen and r"x\udcff.png" in screen
    report = json.loads((tmp_path / "out/check.json").read_text())
    assert set(report["counts"]["train"]) == set(CLASSES)
    assert len(report["duplicates_across_splits"]) == 4 and len(report["unreadable"]) == 1
    clean = (tmp_path / "out/clean.csv").read_text()
    assert "\n=" not in clean and ",=" not in clean
    assert r"name is not UTF-8: [b]\udcfe.png" in caplog.text
    command = shlex.split(caplog.text.split("train on the rest with: ")[1].splitlines()[0])
    assert command[:4] == ["python", "-m", "qcs.train", "dataset=csv"]
    again = Manifest.from_csv(tmp_path / "out/clean.csv", faces.root, CLASSES)
    assert len(again) == len(faces) - 4 - 1 - 1


def test_an_image_that_goes_away_between_two_readings(tmp_path, monkeypatch, caplog):
    faces = three_colours(tmp_path).select(np.array([0, 12, 24, 50]))
    faces.to_csv(tmp_path / "t.csv")

    def gone(manifest: Manifest, workers: int) -> inspection.Inspection:
        found = inspection.inspect(manifest, workers, progress=False)
        os.unlink(manifest.root / manifest.paths[0])
        return found

    monkeypatch.setattr("qcs.check.inspect", gone)
    check(config("qcs.data.manifest.Manifest.from_csv", tmp_path / "t.csv", tmp_path / "out"))
    assert (tmp_path / "out/faces.png").is_file() and "left out of faces.png" in caplog.text


def preparing(tmp_path: Path, **more) -> dict:
    three_colours(tmp_path).to_csv(tmp_path / "t.csv")
    options = {"store": str(tmp_path / "stores"), "size": 8, "on_error": "fail"}
    target = "qcs.data.manifest.Manifest.from_csv"
    return config(target, tmp_path / "t.csv", tmp_path / "out", **options, **more)


def test_ctrl_c_while_preparing_is_a_sentence_and_it_goes_on(tmp_path, monkeypatch, capsys):
    settings, write, calls = preparing(tmp_path), StoreWriter.write, []

    def interrupted(*arguments):
        write(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "write", interrupted)
    monkeypatch.setattr(decoding, "CHUNK", 10)
    with pytest.raises(SystemExit) as left:
        prepare(settings)
    assert left.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    read, image = [], Manifest.image
    monkeypatch.setattr(Manifest, "image", lambda self, row: read.append(row) or image(self, row))
    prepare(settings)
    assert len(read) == 54 - 20


def test_a_killed_loader_process_is_a_sentence(tmp_path):
    faces = three_colours(tmp_path)
    with pytest.raises(UserError, match="was killed .* smaller num_workers"):
        list(decoding.decode_all(faces, killed, range(54), 1, None))


def killed(image: Image.Image) -> None:
    os.kill(os.getpid(), 9)


def test_names_that_are_not_utf8_are_prepared_and_reported(tmp_path, monkeypatch, caplog):
    faces = odd_faces(tmp_path)
    monkeypatch.setattr("qcs.prepare.instantiate", lambda node: faces)
    options = {"store": str(tmp_path / "stores"), "size": 8, "on_error": "skip"}
    assert prepare(config("", tmp_path, tmp_path / "out", **options)).is_dir()
    assert r"x\udcff.png" in caplog.text and "\udcff" not in caplog.text
