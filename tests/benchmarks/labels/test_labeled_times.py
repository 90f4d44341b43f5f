"""Rates read from a store's index, where the answer is plain arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.labels.labeled_times import by_worker, rate_of_all
from logitstore.manifest.fields import ShardEntry


def entry(worker: str, committed_sec: float, *, rows: int = 100, seconds: float = 1.0) -> ShardEntry:
    return ShardEntry(
        unit_id=f"{worker}-{committed_sec}", unit_index=0, name="shard", num_sequences=1, num_rows=rows, num_tokens=rows,
        num_bytes=1, checksum="", num_rejects=0, seconds=seconds, worker=worker, committed_sec=committed_sec,
    )  # fmt: skip


def test_rates_of_workers_add_up_and_first_units_are_start_up() -> None:
    early = [entry("a", time) for time in (10.0, 11.0, 12.0, 14.0)]
    late = [entry("b", 13.0, rows=900), entry("b", 13.5, rows=50), entry("b", 15.0, rows=150)]
    assert rate_of_all(by_worker([*late, *early])) == pytest.approx(300 / 4 + 200 / 2)


def test_a_worker_that_came_late_is_taken_to_be_like_the_others() -> None:
    assert rate_of_all(by_worker([entry("a", 1.0), entry("a", 3.0), entry("b", 3.0)])) == pytest.approx(100.0)


def test_one_unit_each_says_nothing_of_a_rate() -> None:
    with pytest.raises(ValueError, match="no worker labeled a second unit"):
        rate_of_all(by_worker([entry("a", 1.0), entry("b", 5.0)]))
