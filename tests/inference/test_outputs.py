"""What the console tells of photos, their faces and their pictures."""

import math
from collections import Counter
from pathlib import Path

from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key
from qcs.inference.outputs import Tally, console_lines, summary
from qcs.inference.pictures import Written

NONE = Written()
FACE = Prediction("sad", 0.876, {"sad": 0.876, "glad": 0.124}, (1.2, 2.7, 30.1, 40.0))


def lines(*faces: Prediction, error: str | None = None, pictures: Written = NONE) -> list[str]:
    result = Result(Key("a/x.jpg", "x.jpg"), None, error, list(faces), [])
    return list(console_lines(result, pictures, Path("run")))


def test_each_face_of_a_photo_has_a_line():
    cut = FACE._replace(box=None)
    assert lines(FACE, cut) == [
        "a/x.jpg: sad 88 %, left 1, top 3, right 30, bottom 40",
        "a/x.jpg: sad 88 %",
    ]


def test_a_photo_without_a_face_has_a_line_and_an_error_is_told_elsewhere():
    assert lines() == ["a/x.jpg: no face found"]
    assert lines(error="it is broken") == []


def test_each_picture_that_was_written_is_named():
    pictures = Written("annotated/x.jpg", ("crops/x.jpg-0.png",))
    assert lines(FACE, pictures=pictures)[1:] == [
        "a/x.jpg: picture run/annotated/x.jpg",
        "a/x.jpg: picture run/crops/x.jpg-0.png",
    ]


def test_the_summary_counts_one_and_many():
    counts = Counter({"images": 1, "faces": 1, ("label", "sad"): 1})
    assert summary(counts, ("glad", "sad"), False) == "1 image, 1 face (sad 1)"
    counts |= {"images": 3, "faces": 2, "empty": 1, "errors": 1, ("label", "glad"): 1}
    found = summary(counts, ("glad", "sad"), True)
    told = "3 images or frames, 2 faces (glad 1, sad 1), 1 without a face, 1 with an error"
    assert found == told
    assert summary(Counter(), ("sad",), False) == "0 images, 0 faces"


def test_few_photos_are_told_one_by_one_and_many_are_counted(caplog):
    caplog.set_level("INFO")
    result = Result(Key("a/x.jpg", "x.jpg"), None, None, [FACE, FACE], [])
    broken = Result(Key("b.jpg", "b.jpg"), None, "b.jpg is broken", [], [])
    for photos, lines_of_each in ((10, 2), (11, 0), (math.inf, 0)):
        caplog.clear()
        tally = Tally(("glad", "sad"), photos, Path("run"))
        tally.add(result, NONE)
        tally.add(broken, NONE)
        tally.finish(Path("out.csv"), 7, 3, [Path("run/crops")])
        assert caplog.text.count("sad 88 %") == lines_of_each
        assert caplog.text.count("b.jpg is broken") == 1
        assert "there already: 7, 3 of them with an error" in caplog.text
        frames = "s or frames" if photos == math.inf else "s"
        assert f"2 image{frames}, 2 faces (sad 2), 1 with an error: out.csv" in caplog.text
        assert ("pictures: run/crops" in caplog.text) == (photos > 10)
        assert tally.counts["errors"] == 4 and tally.counts["empty"] == 0
