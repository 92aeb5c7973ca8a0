"""Escape text from outside, such as names of classes and files, for the place where it is shown.

This module imports nothing of ours, so that every room may use it.
"""

import html
import re
import unicodedata

# Categories of characters that steer a terminal, break a line, reorder the text around them or
# cannot be encoded: control, format, surrogate (a byte of a name that is not UTF-8), separators.
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of Persian words and of emoji


def terminal(text: object) -> str:
    r"""Return one line in which control characters are written out, as in `\x1b` and `\n`."""
    text = str(text)
    if text.isprintable():  # nearly all
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _STEERING and c not in _JOINERS
        else c
        for c in text
    )


def utf8(text: str) -> str:
    """A text in which bytes that are not UTF-8 are written as `\\xNN`; file names can hold some."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def markdown(text: object) -> str:
    """Return one line that Markdown, in a table as well, shows as it is: no markup, no HTML."""
    marked = re.sub(r"[\\`*\[\]#~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", terminal(text))
    return html.escape(marked, quote=False).replace("|", "&#124;")


def spreadsheet(text: object) -> str:
    """Return one line that a spreadsheet takes as text: what would be a formula gets a `'`.

    A formula starts with one of `=+-@`, of the ASCII or of the full width.
    """
    line = terminal(text)
    if not line.lstrip().startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")):
        return line
    try:
        float(line)
    except ValueError:
        return f"'{line}"
    return line  # a negative number
