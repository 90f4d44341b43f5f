"""Sequences of a store by number: any page of a million sequences without reading the others.

Sequence numbers run over the committed shards in the plan's order. While a job runs, a unit that
commits late moves the numbers behind it; a finished store's numbers never change.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict

import numpy as np

from logitstore.index.entries import ShardIndex
from logitstore.manifest.fields import ShardEntry
from logitstore.records import LabeledSequence
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore

MAX_OPEN_SHARDS = 8
MAX_CACHED_BLOCKS = 4


class SequencePages:
    """Random access to the sequences of a store; safe to call from several threads."""

    def __init__(self, store: LogitStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int, int | None], list[LabeledSequence]] = OrderedDict()
        self._shards, self._ends = _listed(store)

    @property
    def total(self) -> int:
        """Committed sequences."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def refresh(self) -> None:
        """Take in the shards committed since."""
        with self._lock:
            self._store.refresh()
            self._shards, self._ends = _listed(self._store)

    def read(self, start: int, count: int, *, top_k: int | None = None) -> list[LabeledSequence]:
        """Sequences `start` to `start + count`, as many as there are; `top_k` entries of each row.

        Raises:
            IndexError: `start` is negative or not below `total`.
        """
        if self._store.manifest.labels.support == "given":
            top_k = None  # the first of given entries are no top-K
        with self._lock:
            if not 0 <= start < self.total:
                raise IndexError(
                    f"sequence {start} does not exist: the store has {self.total}; "
                    f"ask for 0 to {self.total - 1}"
                )
            stop = min(start + count, self.total)
            found: list[LabeledSequence] = []
            while start + len(found) < stop:
                found += self._block_from(start + len(found), top_k)[: stop - start - len(found)]
            return found

    def _block_from(self, number: int, top_k: int | None) -> list[LabeledSequence]:
        """The sequences from `number` to the end of its block."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        entry = self._shards[shard]
        local = number - (int(self._ends[shard]) - entry.num_sequences)
        reader = self._reader(entry)
        block = bisect.bisect_right(reader.block_starts, local) - 1
        key = (entry.name, block, top_k)
        if key not in self._blocks:
            self._blocks[key] = reader.read_block(block, top_k=top_k)
            while len(self._blocks) > MAX_CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key][local - reader.block_starts[block] :]

    def _reader(self, entry: ShardEntry) -> ShardReader:
        if entry.name not in self._readers:
            self._readers[entry.name] = self._store.open_shard(entry)
            while len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(entry.name)
        return self._readers[entry.name]


def _listed(store: LogitStore) -> tuple[ShardIndex, np.ndarray]:
    """The committed shards, and how many sequences lie in each and before it (int64)."""
    shards = store.shards()
    return shards, np.cumsum(shards.column("num_sequences"), dtype=np.int64)
