"""Text in pictures: any characters, any length, and nothing of it is a formula."""

import warnings

import pytest
import torch
from PIL import Image

from qcs import plots
from qcs.plots.text import families, label, lines, wrapped

HARD = [
    "$x^{$",
    "\u9ad8\u5174",
    "\x1b[31m\n",
    "caf\udce9",
    "a_long_name_" * 9,
    r"\$",
    "\u0645\u0631",
]


def test_a_label_is_one_line_that_fits():
    assert label("Very_Angry") == "Very_Angry" and label("a\nb") == r"a\nb"
    short = label("a_very_long_name_of_a_class_1", ems=8)
    assert short.startswith("a_ver") and short.endswith("s_1") and "\u2026" in short
    assert label("WWWWWWWW", 6) != "WWWWWWWW" and label("iiiiiiii", 6) == "iiiiiiii"
    assert lines("a\nb") == "a\nb" and "\n" in wrapped("word " * 60, 5, 11)


def test_characters_without_a_font_are_written_out():
    missing = "\U0010fffd"  # of private use
    assert label(missing) == r"\U0010fffd" and families(missing) == []


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_any_name_is_drawn(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is one
        plots.confusion(torch.eye(len(HARD)).long(), HARD, path, "$a_$ \u9ad8")
    first = path.read_bytes()
    assert len(first) > 1000
    if suffix == "svg":
        assert b"$x^{$" in first  # as it is, in the comment above its paths
    plots.confusion(torch.eye(len(HARD)).long(), HARD, path, "$a_$ \u9ad8")
    assert path.read_bytes() == first  # no date, no random name


def test_titles_do_not_overprint(tmp_path):
    """The titles of two neighbours keep a gap of white pixels between them."""
    images = torch.ones(2, 3, 16, 16)
    plots.face_sheet(images, ["W" * 90 + " 98 %\nloss 1.00"] * 2, tmp_path / "x.png", [True] * 2)
    picture = Image.open(tmp_path / "x.png").convert("L")
    dark = torch.tensor(list(picture.tobytes())).view(picture.height, picture.width).lt(128).any(0)
    middle = picture.width // 2
    assert not dark[middle - 2 : middle + 3].any() and dark.sum() > 20
