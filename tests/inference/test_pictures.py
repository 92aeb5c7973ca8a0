"""Pictures and records out: nothing overwrites another, nothing odd ends the work."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference import outputs, video
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.outputs import Records
from qcs.inference.pictures import Pictures, Written


def result(name, size=(40, 30), frame=None, seconds=None, file=None, colour="red", **options):
    shares = {"red": 0.75, "green": 0.25}
    options = {"error": None, "predictions": [Prediction("red", 0.75, shares)]} | options
    picture = Image.new("RGB", size, colour)
    crops = [Image.new("RGB", (8, 8), colour)] * len(options["predictions"])
    key = Key(file or name, name, frame, seconds)
    return Result(key, picture, options["error"], options["predictions"], crops)


def write(folder, *results, crops=True):
    with Pictures(folder, annotate=True, crops=crops) as pictures:
        return [pictures.write(one) for one in results]


def test_each_input_has_pictures_of_its_own(tmp_path):
    names = ["x.jpg", "x.jpg", "X.jpg", "x.png", "x.bmp", "x.bmp.jpg", "x-2.jpg", "sub/x.jpg"]
    done = write(tmp_path, *(result(n, file=f"{i}/{n}") for i, n in enumerate(names)))
    paths = [path for one in done for path in (one.annotated, *one.crops)]
    assert len({path.lower() for path in paths}) == 2 * len(names)
    assert all((tmp_path / path).is_file() for path in paths)
    assert done[0] == Written("annotated/x.jpg", ("crops/x.jpg-0.png",))
    assert done[1].annotated == "annotated/x-2.jpg"


def test_two_films_of_one_name_are_two_films_with_their_times(tmp_path):
    times, frames = [0, 0.1, 0.5, 2.0], []
    for name in ("clip.mp4", "clip.mov"):
        frames += [result(name, (64, 48), n, time) for n, time in enumerate(times)]
    done = write(tmp_path, *frames)
    assert [one.annotated for one in done[::4]] == ["annotated/clip.mp4", "annotated/clip-2.mp4"]
    for one in done[::4]:
        found = [frame.seconds for frame in video.film(tmp_path / one.annotated)]
        np.testing.assert_allclose(found, times, atol=1e-3)
    assert len(list((tmp_path / "crops").iterdir())) == 8


def test_a_long_name_is_shortened_and_stays_its_own(tmp_path):
    names = [f"{'ä' * 124}{n}.png" for n in range(10, 12)] + ["z" * 250 + ".png"]
    assert all(len(os.fsencode(name)) >= 254 for name in names)
    done = write(tmp_path, *map(result, names))
    assert len({one.annotated for one in done}) == len({one.crops for one in done}) == 3
    assert all((tmp_path / one.crops[0]).is_file() for one in done)


@pytest.mark.parametrize("size", [(1, 80_000), (80_000, 1), (1, 1), (3, 2)])
def test_a_picture_of_odd_sides_is_annotated(size, tmp_path):
    (done,) = write(tmp_path, result("odd.jpg", size))
    with Image.open(tmp_path / done.annotated) as found:
        assert found.size == size and (found.format == "PNG") == (max(size) > 65_535)


def test_what_cannot_be_written_is_said_for_that_input(tmp_path):
    (tmp_path / "annotated").mkdir()
    (tmp_path / "annotated" / "a").write_text("in the way")
    with Pictures(tmp_path, True, False) as pictures:
        with pytest.raises(UserError, match="cannot write pictures of a/x.jpg"):
            pictures.write(result("a/x.jpg"))
        assert pictures.write(result("b/x.jpg")).annotated == "annotated/b/x.jpg"
        film = [result("a/c.mp4", frame=n) for n in range(3)]
        with pytest.raises(UserError, match="cannot write pictures of a/c.mp4"):
            pictures.write(film[0])
        assert pictures.write(film[1]) == Written()  # said once


def test_no_picture_is_written_over_a_file_that_is_to_be_read(tmp_path):
    (done,) = write(tmp_path, result("x.jpg"))
    for path in (done.annotated, *done.crops):
        with (
            Pictures(tmp_path, annotate=True, crops=False) as pictures,
            pytest.raises(UserError, match="where this run writes its pictures"),
        ):
            pictures.require_apart(["other.jpg", str(tmp_path / path)])
    with Pictures(tmp_path, annotate=False, crops=False) as pictures:
        pictures.require_apart([str(tmp_path / done.annotated)])


def records(path, *results):
    with Records(path, ["red", "green"]) as out:
        for one in results:
            out.write(one, Written("annotated/=x.jpg"))


def test_names_are_exact_in_json_and_no_formulas_in_a_table(tmp_path):
    names = [
        "=cmd|' /C calc'!A0.jpg",
        "@sum.jpg",
        "-2+3.jpg",
        "+1.jpg",
        "plain ü.jpg",
        "a\x1b[31m\n.jpg",
    ]
    box = (-3.5, 1.0, 5.0, 7.0)
    face = Prediction("=red", 0.75, {"red": 0.75, "green": 0.25}, box, ((0, 0),) * 5, 0.9)
    results = [result(name, predictions=[face]) for name in names]
    records(tmp_path / "out.jsonl", *results), records(tmp_path / "out.CSV", *results)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["file"] for line in lines] == names
    with (tmp_path / "out.CSV").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"].removeprefix("'") for row in rows] == [*names[:5], r"a\x1b[31m\n.jpg"]
    assert all(cell[0] not in "=+@-" for row in rows for cell in (row["file"], row["label"]))
    assert rows[0]["left"] == "-3.5"  # a number stays one


def test_stdout_that_a_shell_appends_to_a_file_keeps_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "STDOUT", tmp_path / "stdout")
    (tmp_path / "stdout").write_text("before\n")
    records(tmp_path / "stdout", result("a.jpg"))
    assert (tmp_path / "stdout").read_text().startswith('before\n{"file": "a.jpg"')


def test_a_name_that_is_not_utf_8_is_written(tmp_path):
    odd = os.fsdecode(b"bad\xff.jpg")
    for name in ("out.jsonl", "out.csv"):
        records(tmp_path / name, result(odd, error=f"cannot read {odd}", predictions=[]))
        assert b"bad\\xff" in (tmp_path / name).read_bytes().replace(b"\\\\", b"\\")
    assert write(tmp_path, result(odd))[0].annotated


def test_a_number_that_is_not_finite_is_never_written(tmp_path):
    face = Prediction("red", float("nan"), {"red": float("nan"), "green": 0.0})
    with pytest.raises(ValueError, match="JSON"):
        records(tmp_path / "out.jsonl", result("a.jpg", predictions=[face]))


@pytest.mark.parametrize("place", ["/dev/full", ".", "file/out.jsonl", f"{'n' * 300}.csv"])
def test_records_that_cannot_be_written_are_one_sentence(place, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written .*choose another place with out="):
        records(tmp_path / place, result("a.jpg"))
