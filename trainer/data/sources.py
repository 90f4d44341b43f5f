"""The stores behind a dataset: what takes part of each, and how its shards are opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from trainer.data.cache import ShardCache

HELD_OUT_THREADS = 16
"""Shards whose record ids are read side by side when a part is held out."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Which records are kept from training. The same record is held out in every store and every run."""

    fraction: float
    side: Literal["train", "held_out"] = "train"
    """Which part to read."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"held-out fraction {self.fraction} must lie in [0, 1)")

    def keeps(self, record_id: str) -> bool:
        """Whether a record is on this side: by a hash of its id, so all its samples stay together."""
        digest = hashlib.blake2b(record_id.encode(), digest_size=8, person=b"held-out").digest()
        is_held_out = int.from_bytes(digest, "big") < self.fraction * 2**64
        return is_held_out == (self.side == "held_out")


class Source:
    """One store as a dataset reads it: fixed at construction, picklable, with no open files."""

    def __init__(
        self,
        uri: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache: ShardCache | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        store = LogitStore.open(uri, storage_options=storage_options)
        self.uri = store.uri
        self.manifest: Manifest = store.manifest
        self.digest = store.digest
        self.entries: list[ShardEntry] = [entry for entry in store.shards() if entry.num_sequences]
        self._objects = store.objects
        self._codebooks = store.codebooks()
        self._cache = cache
        # Per shard, the sequences that take part; None is all of them.
        self._kept: list[np.ndarray] | None = None
        if held_out is not None and (held_out.fraction > 0 or held_out.side == "held_out"):
            with ThreadPoolExecutor(HELD_OUT_THREADS, thread_name_prefix="logit-held-out") as pool:
                self._kept = list(pool.map(lambda entry: self._find_kept(entry, held_out), self.entries))

    @property
    def lengths(self) -> list[int]:
        """Sequences of each shard that take part."""
        if self._kept is not None:
            return [len(kept) for kept in self._kept]
        return [entry.num_sequences for entry in self.entries]

    @contextmanager
    def open(self, shard: int) -> Iterator[ShardReader]:
        entry = self.entries[shard]
        if self._cache is not None:
            with self._cache.open(self._objects, entry) as file:
                yield ShardReader(file, self.manifest.labels, self._codebooks)
            return
        with self._open_remotely(entry) as reader:
            yield reader

    @contextmanager
    def _open_remotely(self, entry: ShardEntry) -> Iterator[ShardReader]:
        """Without the cache: only what is read of the shard is fetched."""
        # The reader asks for whole ranges itself; reading ahead would only fetch what it skips.
        with self._objects.open(entry.name, num_bytes=entry.num_bytes, buffer_bytes=512) as file:
            yield ShardReader(file, self.manifest.labels, self._codebooks)

    def fetch(self, shard: int) -> None:
        """Have the shard in the cache, if there is one."""
        if self._cache is not None:
            self._cache.fetch(self._objects, self.entries[shard])

    def kept(self, shard: int) -> np.ndarray:
        """int64, places within the shard of the sequences that take part, ascending."""
        if self._kept is None:
            return np.arange(self.entries[shard].num_sequences)
        return self._kept[shard]

    def _find_kept(self, entry: ShardEntry, held_out: HeldOut) -> np.ndarray:
        with self._open_remotely(entry) as reader:
            keeps = [
                held_out.keeps(record_id)
                for block in range(reader.num_blocks)
                for record_id in reader.record_ids(block)
            ]
        return np.flatnonzero(keeps)


def combined_digest(sources: Sequence[Source], weights: Sequence[float], held_out: HeldOut | None) -> str:
    """Names everything about the stores that the order depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for source, weight in zip(sources, weights, strict=True):
        digest.update(f"{source.digest}|{weight!r}\n".encode())
    if held_out is not None:
        digest.update(f"{held_out.fraction!r}|{held_out.side}".encode())
    return digest.hexdigest()
