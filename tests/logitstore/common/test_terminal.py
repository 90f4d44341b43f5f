"""Nothing of data reaches a terminal that would move its cursor."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from labeler.driver.progress import ProgressView
from logitstore.common.terminal import first_line, printable


@given(st.text())
def test_what_is_printed_is_printable(text: str) -> None:
    assert all(letter.isprintable() or letter == "\n" for letter in printable(text))
    if text.isprintable():
        assert printable(text) == text


def test_a_note_about_a_hostile_record_is_shown_and_not_obeyed() -> None:
    stream = io.StringIO()
    ProgressView(quiet=False, stream=stream).note("record '\x1b]0;title\x07 \x1b[8m hidden'")
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[8m hidden" in stream.getvalue()


def test_an_error_is_told_by_its_first_line_or_by_its_kind():
    assert first_line(ValueError("no model there\nTraceback and\nmore")) == "no model there"
    assert first_line(ValueError("no valid field 'a':\n  it is 5\nmore")) == "no valid field 'a': it is 5"
    assert first_line(ValueError("nothing behind:")) == "nothing behind:"
    assert first_line(ValueError("\n  late\nmore")) == "late"
    assert first_line(AssertionError()) == "AssertionError"
