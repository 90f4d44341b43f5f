"""Rates read from a store's index, where the answer is plain arithmetic."""

from __future__ import annotations

import pytest

from benchmarks.labeled_times import by_worker, rate_of_all
from logitstore.manifest import ShardEntry


def entry(worker: str, committed_sec: float, *, rows: int = 100, seconds: float = 1.0) -> ShardEntry:
    return ShardEntry(
        unit_id=f"{worker}-{committed_sec}", unit_index=0, name="shard", num_sequences=1, num_rows=rows, num_tokens=rows,
        num_bytes=1, checksum="", num_rejects=0, seconds=seconds, worker=worker, committed_sec=committed_sec,
    )  # fmt: skip


def test_the_rate_of_all_is_taken_while_all_work() -> None:
    """One worker starts late, the other ends early: only the seconds 12 to 14 count, with halves of units."""
    early = [entry("a", time) for time in (10.0, 11.0, 12.0, 13.0, 14.0)]
    late = [entry("b", time, rows=200) for time in (12.0, 13.5, 15.0)]
    late[1:] = [entry("b", time, rows=300, seconds=1.5) for time in (13.5, 15.0)]
    rows = 100 + 100 + 300 + 300 * (14 - 13.5) / 1.5
    assert rate_of_all(by_worker([*late, *early])) == pytest.approx(rows / 2)


def test_a_unit_that_waited_in_the_queue_is_not_counted_twice() -> None:
    queued = [entry("a", 1.0), entry("a", 2.0, seconds=1.9), entry("a", 3.0, seconds=1.9)]
    assert rate_of_all(by_worker(queued)) == pytest.approx(100.0)


def test_workers_that_never_met_are_an_error() -> None:
    apart = [entry("a", 1.0), entry("a", 2.0), entry("b", 5.0), entry("b", 6.0)]
    with pytest.raises(ValueError, match="2 workers were never all at work"):
        rate_of_all(by_worker(apart))
