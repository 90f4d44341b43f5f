"""A store of two units."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.store import LogitStore
from tests.logitstore.random_labels import commit_units, make_manifest


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(2))
    return store
