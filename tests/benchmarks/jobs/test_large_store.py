"""The measurement of a large store, small: what is compared holds the same."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.jobs.large_store import WRITTEN_MEANWHILE, Sizes, _measure, _size
from logitstore.store import LogitStore


@pytest.mark.slow
def test_parquet_is_compared_with_a_store_of_the_same_records(tmp_path: Path) -> None:
    steps, figures, notes = _measure(tmp_path, Sizes(sequences=130, looked_up=5, deleted=30))
    tables, public = tmp_path / "tables", tmp_path / "public"
    assert figures["parquet_over_store"].value == _size(tables) / _size(public)
    in_tables = {
        name for part in tables.glob("*.parquet") for name in pq.read_table(part)["record_id"].to_pylist()
    }
    assert in_tables == {one.record_id for one in LogitStore.open(public).iter_sequences()}
    assert len(in_tables) == 100 + WRITTEN_MEANWHILE
    assert len(notes) == 6
    assert all(step.num_bytes > 0 for step in steps)
