"""JSON of anybody's values."""

from __future__ import annotations

import json
from datetime import date

import pytest

from logitstore.inputs.json_text import json_text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (
            {"a": float("inf"), "b": [float("nan"), -0.5], "c": "é"},
            '{"a": null, "b": [null, -0.5], "c": "é"}',
        ),
        ({"d": date(2026, 1, 2)}, '{"d": "2026-01-02"}'),
        ((1, {"e": (float("-inf"), b"x")}), '[1, {"e": [null, "b\'x\'"]}]'),
    ],
)
def test_every_value_has_a_line_of_json(value: object, written: str) -> None:
    assert json_text(value) == written
    assert "\n" not in json_text({"a": "b\nc"})
    assert json.loads(json_text({"a": "é"}, ascii_only=True).encode("ascii")) == {"a": "é"}
