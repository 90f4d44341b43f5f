"""Sequences chosen by what the filters marked."""

from dataclasses import replace
from pathlib import Path

import pytest

from logitstore.errors import UnsupportedInputError
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("flags has truncated", ["b", "c"]),
        ("flags lacks truncated", ["a"]),
        ("flags has truncated and flags lacks repeated", ["b"]),
        ("record_id >= b and flags has 'repeated'", ["c"]),
    ],
)
def test_sequences_are_chosen_by_their_flags(where: str, expected: list[str], tmp_path: Path) -> None:
    flags = {"a": (), "b": ("truncated",), "c": ("truncated", "repeated")}
    sequences = [replace(make_sequence(name), flags=marks) for name, marks in flags.items()]
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit", 0, sequences, seconds=0, worker="w")
    found = [sequence.record_id for sequence in parse_selection(where).sequences(store)]
    assert found == expected


@pytest.mark.parametrize("where", ["flags = truncated", "record_id has a", "num_tokens lacks 3"])
def test_has_and_lacks_are_for_flags_alone(where: str) -> None:
    with pytest.raises(UnsupportedInputError, match="flags has truncated"):
        parse_selection(where)
