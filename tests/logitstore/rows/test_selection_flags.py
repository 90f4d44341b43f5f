"""Sequences chosen by what the filters marked."""

from dataclasses import replace

import pytest

from logitstore.errors import UnsupportedInputError
from logitstore.rows.selection import parse_selection
from tests.labeler.worker.test_filters import response


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("flags has truncated", ["b", "c"]),
        ("flags lacks truncated", ["a"]),
        ("flags has truncated and flags lacks repeated", ["b"]),
        ("record_id >= b and flags has 'repeated'", ["c"]),
    ],
)
def test_sequences_are_chosen_by_their_flags(where: str, expected: list[str]) -> None:
    flags = {"a": (), "b": ("truncated",), "c": ("truncated", "repeated")}
    sequences = [replace(response([5]), record_id=name, flags=marks) for name, marks in flags.items()]
    selection = parse_selection(where)
    assert [sequence.record_id for sequence in sequences if selection.takes(sequence)] == expected


@pytest.mark.parametrize("where", ["flags = truncated", "record_id has a", "num_tokens lacks 3"])
def test_has_and_lacks_are_for_flags_alone(where: str) -> None:
    with pytest.raises(UnsupportedInputError, match="flags has truncated"):
        parse_selection(where)
