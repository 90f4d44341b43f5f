"""A store of two units."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_unit


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit_index in range(2):
        unit_id, sequences = make_unit(unit_index)
        store.commit_unit(unit_id, unit_index, sequences, seconds=0, worker="w")
    return store
