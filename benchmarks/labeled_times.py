"""What a store that was really labeled says about its own making: rates and sizes from its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from logitstore.manifest import ShardEntry
from logitstore.store import LogitStore


@dataclass(frozen=True, slots=True)
class LabeledStore:
    """A finished job. A replica's first unit, in which its engine warms up, counts as start-up."""

    uri: str
    top_k: int
    rows: int
    """Label rows, the model's tokens."""
    num_bytes: int
    units: int
    replicas: int
    all_rows_per_sec: float
    """Of all replicas while all of them work."""

    @property
    def rows_per_sec(self) -> float:
        """Of one replica beside the others."""
        return self.all_rows_per_sec / self.replicas


def read_store(uri: str) -> LabeledStore:
    """Add up a store's index. ValueError if it has no timed unit."""
    store = LogitStore.open(uri)
    entries = [entry for entry in store.shards() if entry.num_rows]
    if not entries or not all(entry.committed_sec for entry in entries):
        raise ValueError(f"{uri} has no units with times; label it with this version to measure rates")
    workers = by_worker(entries)
    return LabeledStore(
        uri=uri,
        top_k=store.manifest.labels.top_k,
        rows=sum(entry.num_rows for entry in entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        units=len(entries),
        replicas=len(workers),
        all_rows_per_sec=rate_of_all(workers),
    )


def by_worker(entries: Sequence[ShardEntry]) -> list[list[ShardEntry]]:
    """The units of each worker in the order of their commits."""
    workers: dict[str, list[ShardEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.committed_sec):
        workers.setdefault(entry.worker, []).append(entry)
    return list(workers.values())


def rate_of_all(workers: Sequence[Sequence[ShardEntry]]) -> float:
    """Rows per second between the last worker's first commit and the first worker's last commit.

    ValueError if the workers were never all at work.
    """
    start = max(units[0].committed_sec for units in workers)
    end = min(units[-1].committed_sec for units in workers)
    if end <= start:
        raise ValueError(
            f"the {len(workers)} workers were never all at work after their first units; label more units"
        )
    rows = 0.0
    for units in workers:
        for before, entry in pairwise(units):
            # A unit waits in its worker's queue first: it is labeled from the commit before on.
            began = max(_started(entry), before.committed_sec)
            inside = max(0.0, min(entry.committed_sec, end) - max(began, start))
            rows += entry.num_rows * inside / (entry.committed_sec - began)
    return rows / (end - start)


def _started(entry: ShardEntry) -> float:
    return entry.committed_sec - entry.seconds
