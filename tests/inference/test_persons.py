"""What persons showed: shares and spans of time, in a table, a file and a picture."""

import csv

import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.persons import MOST_ROWS, Persons
from qcs.plots.timeline import clock

NAMES = ("red", "=green")


def result(name, frame, seconds, **shown) -> Result:
    """A frame in which persons, as p1, show labels."""
    faces = [
        Prediction(label, 1.0, dict.fromkeys(NAMES, 0.5), person=int(person[1:]))
        for person, label in shown.items()
    ]
    return Result(Key(name, name, frame, seconds), None, None, faces, [])


def rows(folder) -> list[dict[str, str]]:
    with (folder / "persons.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(folder, results, gap=1.0) -> list[dict[str, str]]:
    persons = Persons(NAMES, gap)
    for one in results:
        persons.add(one)
    persons.write(folder)
    return rows(folder)


def test_shares_and_spans_are_times_not_counts_of_frames(tmp_path, capsys):
    """The frames come at 0, 0.1, 0.2 and then every second."""
    times = (0, 0.1, 0.2, 1.2, 2.2, 3.2)
    labels = ("=green", "=green", "red", "red", "=green", "red")
    frames = enumerate(zip(times, labels, strict=True))
    (row,) = write(tmp_path, [result("a.mp4", n, t, p1=label) for n, (t, label) in frames])
    assert (row["file"], row["person"]) == ("a.mp4", "1")
    assert [float(row[k]) for k in ("first_seen", "last_seen", "seconds")] == [0, 4.2, 4.2]
    assert float(row["share_red"]) == pytest.approx(3 / 4.2, abs=1e-4)  # 2 s, and the last frame's
    assert float(row["share_=green"]) == pytest.approx(1.2 / 4.2, abs=1e-4)
    longest = [(row[f"span_{n}_label"], row[f"span_{n}_start"]) for n in (1, 2, 3)]
    assert longest == [("red", "0.2"), ("'=green", "2.2"), ("red", "3.2")]
    shown = capsys.readouterr().out
    assert "red 71 %" in shown.replace("\n", " ") and "0:04.2" in shown


def test_frames_of_a_single_time_count_alike(tmp_path):
    (row,) = write(tmp_path, [result("a.mp4", n, 0.0, p1=label) for n, label in enumerate(NAMES)])
    shares = [float(row[f"share_{name}"]) for name in NAMES]
    assert shares == pytest.approx([1 / len(NAMES)] * len(NAMES), abs=1e-4)


@pytest.mark.parametrize(("back", "spans"), [(1.5, [(0, 2.0)]), (2.5, [(0, 0.5), (2.5, 3.0)])])
def test_a_span_lasts_through_a_short_gap(back, spans, tmp_path):
    frames = [result("a.mp4", 0, 0.0, p1="red"), result("a.mp4", 1, 0.5)]
    frames += [result("a.mp4", 2, 1.0), result("a.mp4", 3, back, p1="red")]
    frames += [result("a.mp4", 4, back + 0.5)]
    (row,) = write(tmp_path, frames)
    found = [
        (float(row[f"span_{n}_start"]), float(row[f"span_{n}_end"]))
        for n in (1, 2, 3)
        if row[f"span_{n}_label"]
    ]
    assert sorted(found) == spans
    assert float(row["seconds"]) == sum(end - start for start, end in spans)


def test_films_are_apart_and_what_is_no_frame_counts_for_nothing(tmp_path):
    films = [result("a/x.mp4", n, n / 10, p1="red", p2="=green") for n in range(3)]
    photo = Result(Key("y.jpg", "y.jpg"), None, None, [Prediction("red", 1.0, {})], [])
    broken = Result(Key("b/x.mp4", "b/x.mp4"), None, "damaged", [], [])
    films += [photo, *(result("b/x.mp4", n, n / 10, p1="red") for n in range(3)), broken]
    films += [result("b/x.mp4", n, n / 10, p1="red") for n in range(3)]  # once more
    found = write(tmp_path, films)
    assert [(row["file"], row["person"]) for row in found] == [
        ("a/x.mp4", "1"),
        ("a/x.mp4", "2"),
        ("b/x.mp4", "1"),
        ("b/x.mp4", "1"),
    ]
    assert all(float(row["seconds"]) == 0.3 for row in found)
    names = sorted(path.name for path in (tmp_path / "timelines").iterdir())
    assert names == ["1-x.png", "2-x.png", "3-x.png"]


def test_a_crowd_is_cut_to_a_picture_and_odd_names_are_written(tmp_path, capsys):
    many = {f"p{n}": "red" for n in range(1, MOST_ROWS + 20)}
    film = [result("../\x1b[31m=$x$.mp4", n, n / 10, **many) for n in range(2)]
    found = write(tmp_path, [*film, result(film[0].key.file, 2, 0.2, p79="red")])
    assert len(found) == MOST_ROWS + 19 and "\x1b[31m" not in capsys.readouterr().out
    (path,) = (tmp_path / "timelines").iterdir()
    with Image.open(path) as picture:
        assert picture.height < 5000
    assert path.resolve().parent == (tmp_path / "timelines").resolve()


def test_nobody_is_a_table_without_rows(tmp_path):
    assert write(tmp_path, [result("a.mp4", 0, 0.0)]) == []
    assert not (tmp_path / "timelines").exists()


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "timelines").write_text("in the way")
    with pytest.raises(UserError, match="cannot write pictures of the persons"):
        write(tmp_path, [result("a.mp4", 0, 0.0, p1="red")])


def test_times_are_read_as_on_a_player():
    assert [clock(t) for t in (0, 9.96, 59.97, 61.25, 3599.99, 3725)] == [
        "0:00.0",
        "0:10.0",
        "1:00.0",
        "1:01.2",
        "1:00:00.0",
        "1:02:05.0",
    ]
