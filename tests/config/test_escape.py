"""Hostile names: what each way of showing them makes of them."""

import io
import logging
import sys

import pytest
from rich.table import Table

from qcs.config.console import console, prepare_output
from qcs.config.escape import markdown, spreadsheet, terminal


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Very_Angry 高兴 مرحبا 👩‍🚀", "Very_Angry 高兴 مرحبا 👩‍🚀"),
        ("\x1b[31mred\x07\n", r"\x1b[31mred\x07\n"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),  # right to left
        ("caf\udce9", r"caf\udce9"),  # a byte that is not UTF-8
        ("\x9b2J", r"\x9b2J"),  # an escape of one character
    ],
)
def test_a_terminal_is_not_steered(text, expected):
    assert terminal(text) == expected and terminal(expected) == expected
    terminal(text).encode()


@pytest.mark.parametrize(
    "text,expected",
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", "a&#124;b"),
        ("[x](javascript:0)", r"\[x\](javascript:0)"),
        ("very_angry _sad_ $5 *", r"very_angry \_sad\_ \$5 \*"),
        ("two\nlines", r"two\\nlines"),  # shown as two\nlines
        (r"a\|b", r"a\\&#124;b"),
    ],
)
def test_markdown_shows_text_as_it_is(text, expected):
    assert markdown(text) == expected


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", " =1", "-x", "\uff1d1"])
def test_a_formula_is_text(text):
    assert spreadsheet(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.5", "+1e-3", "a=b", "-inf"])
def test_what_is_no_formula_stays(text):
    assert spreadsheet(text) == text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tables_and_logs_print_on_any_terminal(encoding, monkeypatch, request):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    request.addfinalizer(lambda: logging.setLogRecordFactory(logging.LogRecord))
    names = ["[/]", "[red]x", ":smile:", "高兴", "caf\udce9"]
    table = Table("name", title="[bold]±")
    for name in names:
        table.add_row(terminal(name))
    prepare_output()
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.warning("no %s\nhere", "\x1b[2J高")
    console().print(table)
    sys.stdout.flush()
    printed = sys.stdout.buffer.getvalue().decode(encoding)
    assert "[/]" in printed and "[red]x" in printed and ":smile:" in printed
    assert r"\udce9" in printed and "\x1b[2J" not in printed and "\nhere" in printed
    assert ("高兴" if encoding == "utf-8" else r"\u9ad8\u5174") in printed
