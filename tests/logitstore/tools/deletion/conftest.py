"""A store of twelve people."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.records import Reject
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.logitstore.tools.deletion.deleted import NAMES


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    """Four units of three records, of which the last is not compacted yet; blocks of two sequences."""
    monkeypatch.setattr("logitstore.shard.writer.BLOCK_ROWS", 22)
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(4):
        sequences = [make_sequence(name) for name in NAMES[3 * unit : 3 * unit + 3]]
        rejects = [Reject("in.jsonl", 99, "person-08", "too long", "too_long")] if unit == 0 else []
        store.commit_unit(f"unit-{unit}", unit, sequences, rejects, seconds=1, worker="w")
        if unit == 2:
            store.compact()
    return store
