"""Numbers that options take: what they cannot be is refused with the value and the rule."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from logitstore.common.options import (
    above_zero,
    amount,
    count,
    positive,
    read_storage_options,
    seconds,
    seeds,
    share,
)
from logitstore.errors import UnsupportedInputError


@pytest.mark.parametrize(
    ("kind", "text", "rule"),
    [
        (positive, "0", "a whole number of at least 1"),
        (positive, "1.5", "a whole number of at least 1"),
        (positive, "many", "a whole number of at least 1"),
        (positive, "9223372036854775808", "a whole number of at most 9,223,372,036,854,775,807"),
        (seeds, "10001", "a whole number of at most 10,000"),
        (count, "-1", "a whole number of at least 0"),
        (count, "", "a whole number of at least 0"),
        (share, "0", "a number in (0, 1]"),
        (share, "half", "a number in (0, 1]"),
        (amount, "inf", "a finite number of at least 0"),
        (amount, "-0.1", "a finite number of at least 0"),
        (above_zero, "0", "a finite number above 0"),
        (above_zero, "nan", "a finite number above 0"),
        (above_zero, "2h", "a finite number above 0"),
        (seconds, "nan", "a number of seconds"),
        (seconds, "soon", "a number of seconds"),
    ],
)
def test_what_an_option_cannot_be_is_refused_with_the_rule(
    kind: Callable[[str], float], text: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=kind)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"--limit={text}"])
    assert f"argument --limit: {text!r} must be {rule}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive, "1", 1), (count, "0", 0), (share, "1", 1.0), (amount, "0", 0.0), (seconds, "-1", -1.0)],
)
def test_the_least_that_is_allowed_is_taken(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value
    assert type(kind(text)) is type(value)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\x00"])
def test_storage_options_that_are_no_object_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(UnsupportedInputError, match="JSON"):
        read_storage_options(tmp_path / "options.json")
