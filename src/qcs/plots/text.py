"""Text in pictures: shortened to the room for it, in characters that an installed font has."""

import functools
import textwrap
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from qcs.config.escape import terminal

NAME = 20  # the room for a class name beside a picture, in units of the font size


def label(text: object, ems: float | None = None) -> str:
    """Return a text as one line that can be drawn.

    Control characters, and characters that no installed font has, are replaced by their escape
    sequences such as `\\u9ad8`.

    Args:
        text: any object; its text is taken.
        ems: the room for it, in units of the font size. A longer text loses its middle.
    """
    line = "".join(
        c if c.isascii() or family(c) is not None else c.encode("unicode_escape").decode()
        for c in terminal(text)
    )
    if ems is None or _width(line) <= ems:
        return line
    kept = len(line) - 1
    while kept > 2 and _width(_without_middle(line, kept)) > ems:
        kept -= 1
    return _without_middle(line, kept)


def lines(text: str, ems: float | None = None) -> str:
    """Apply `label` to each line of a text."""
    return "\n".join(label(line, ems) for line in text.split("\n"))


def wrapped(text: str, inches: float, points: float) -> str:
    """Break a heading into lines that fit a width in inches, at a font size in points."""
    average = 0.55  # the mean width of a character, in units of the font size
    return textwrap.fill(label(text), max(int(inches * 72 / points / average), 40))


def family(character: str) -> str | None:
    """Return the installed font family that has a character: "" is the usual one, None is none."""
    return _family(ord(character))


def families(text: Iterable[str]) -> list[str]:
    """Return the font families that a text needs in addition to the usual one."""
    found = (family(c) for c in sorted(set(text)) if not c.isascii())
    return list(dict.fromkeys(name for name in found if name))


def _without_middle(line: str, kept: int) -> str:
    tail = kept // 2
    return f"{line[: kept - tail]}…{line[len(line) - tail :]}"


def _width(line: str) -> float:
    return sum(_advance(c) for c in line)


def _usual() -> str:
    return font_manager.findfont(font_manager.FontProperties())


@functools.cache
def _font(path: str) -> FT2Font:
    font = FT2Font(path)
    font.set_size(100, 72)
    return font


@functools.cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(_font(path).get_charmap())
    except (OSError, RuntimeError):  # the font is damaged, or FreeType does not support it
        return frozenset()


@functools.cache
def _advance(character: str) -> float:
    """Return the width of a character in units of the font size.

    It is 1 where the character comes from another font than the usual one.
    """
    if ord(character) not in _characters(_usual()):
        return 1.0
    glyph = _font(_usual()).load_char(ord(character))
    return glyph.linearHoriAdvance / 65536 / 100


@functools.cache
def _family(code: int) -> str | None:
    if code in _characters(_usual()):
        return ""
    for font in sorted(font_manager.fontManager.ttflist, key=lambda f: (f.style, f.name, f.fname)):
        if "lastresort" in font.name.replace(" ", "").lower():  # it has a box for every character
            continue
        if code in _characters(font.fname):
            return font.name
    return None
