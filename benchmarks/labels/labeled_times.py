"""What a store that was really labeled says about its own making: rates and sizes from its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logitstore.manifest.fields import ShardEntry
from logitstore.store import LogitStore


@dataclass(frozen=True, slots=True)
class LabeledStore:
    """A finished job. A replica's first unit, in which its engine warms up, counts as start-up."""

    uri: str
    top_k: int
    rows: int
    """Label rows."""
    tokens: int
    """What the engines read and wrote: prompts have tokens and no rows."""
    num_bytes: int
    units: int
    replicas: int
    tokens_per_sec: float
    """All replicas together, while they run side by side."""

    @property
    def rows_per_token(self) -> float:
        return self.rows / self.tokens

    @property
    def rows_per_sec(self) -> float:
        """Label rows of all replicas."""
        return self.tokens_per_sec * self.rows_per_token


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
        tokens=sum(entry.num_tokens for entry in entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        units=len(entries),
        replicas=len(workers),
        tokens_per_sec=rate_of_all(workers),
    )


def by_worker(entries: Sequence[ShardEntry]) -> list[list[ShardEntry]]:
    """The units of each worker in the order of their commits."""
    workers: dict[str, list[ShardEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.committed_sec):
        workers.setdefault(entry.worker, []).append(entry)
    return list(workers.values())


def rate_of_all(workers: Sequence[Sequence[ShardEntry]]) -> float:
    """Tokens per second: the sum of every worker's own rate from its first commit to its last.

    ValueError if no worker committed two units, or none that took time.
    """
    rates = [
        sum(entry.num_tokens for entry in units[1:]) / (units[-1].committed_sec - units[0].committed_sec)
        for units in workers
        if units[-1].committed_sec > units[0].committed_sec
    ]
    if not rates:
        raise ValueError("no worker labeled a second unit, so no rate can be told; label more units")
    # Those that came too late for a second unit are taken to be as fast as the others.
    return sum(rates) / len(rates) * len(workers)
