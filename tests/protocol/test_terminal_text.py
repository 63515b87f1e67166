"""No text acts on a terminal once it went through ``terminal_text``, and what is harmless stays as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.terminal_text import one_line, plain_text

PIECES = st.sampled_from(
    ["\x1b", "\x1b[", "\x1b]0;", "\x07", "\x9b", "2J", "m", "\x1b\\", "\n", "\r", "\t", "\u202e", "\ud83d"]
)
TEXTS = st.lists(PIECES | st.text(st.characters(codec=None), max_size=5)).map("".join)
SAFE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))


@given(TEXTS)
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = plain_text(text)
    left = {char for char in shown if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert left <= {"\n", "\u200c", "\u200d"}
    assert "\n" not in one_line(text)
    assert shown.encode().decode() == shown
    assert plain_text(shown) == shown


@given(SAFE)
def test_harmless_text_is_not_touched(text: str) -> None:
    assert one_line(text) == plain_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07\x1b[2Jhidden", "hidden"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("\x1b]0;without an end", "0;without an end"),
        ("bell\x07", "bell\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udce9", "\\udce9"),
        ("a\tb", "a    b"),
        ("👨\u200d👩\u200d👧 caf\u00e9 漢字", "👨\u200d👩\u200d👧 café 漢字"),
    ],
)
def test_how_it_looks(text: str, shown: str) -> None:
    assert plain_text(text) == shown


def test_lines_stay_lines_where_there_may_be_several() -> None:
    assert plain_text("a\nb") == "a\nb"
    assert one_line("a\r\nb\nc") == "a b c"
