"""The sequences of a block as columns are those that it hands out one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from logitstore.records import LabeledSequence
from logitstore.rows.where import parse_selection
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from tests.logitstore.random_labels import make_manifest, make_sequence


def same(ours: LabeledSequence, theirs: LabeledSequence) -> None:
    for field in dataclasses.fields(LabeledSequence):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "rows":
            for part in dataclasses.fields(mine):
                np.testing.assert_array_equal(getattr(mine, part.name), getattr(other, part.name))
        else:
            np.testing.assert_array_equal(mine, other)


@pytest.fixture
def sequences() -> list[LabeledSequence]:
    """Of unlike length, one without rows."""
    found = [make_sequence(f"r{number}", length=3 + number) for number in range(6)]
    empty = found[2]
    found[2] = dataclasses.replace(empty, rows=empty.rows.slice(0, 0), loss_mask_N=empty.loss_mask_N[:0])
    found[4] = dataclasses.replace(found[4], flags=("truncated",))
    return found


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 1), (2, 3), (1, 5), (3, 3), (5, 9)])
def test_a_slice(sequences: list[LabeledSequence], start: int, stop: int) -> None:
    found = BlockSequences.of(sequences).slice(start, stop).sequences()
    for ours, theirs in zip(found, sequences[start:stop], strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("kept", ["111111", "000000", "101010", "001000", "110111"])
def test_a_filter(sequences: list[LabeledSequence], kept: str) -> None:
    wanted = np.array([digit == "1" for digit in kept])
    found = BlockSequences.of(sequences).filter(wanted).sequences()
    for ours, theirs in zip(found, np.array(sequences, object)[wanted], strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("where", ["", "num_tokens > 4", "record_id = r5", "record_id = none"])
def test_what_a_selection_hands_out_of_a_store(
    sequences: list[LabeledSequence], where: str, tmp_path: Path
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit-0", 0, sequences[:4], seconds=0, worker="w")
    store.commit_unit("unit-1", 1, sequences[4:], seconds=0, worker="w")
    delete_records(store, frozenset(["r3"]), "a test")
    for top_k in (None, 3):
        blocks = parse_selection(where).blocks(store, top_k=top_k)
        found = [one for block in blocks for one in block.sequences()]
        expected = list(parse_selection(where).sequences(store, top_k=top_k))
        assert "r3" not in [one.record_id for one in expected]
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs)
