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
from logitstore.rows.selection import Block, Selection
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore

MAX_OPEN_SHARDS = 8
MAX_CACHED_BLOCKS = 4


class SequencePages:
    """Random access to the sequences of a store; safe to call from several threads."""

    def __init__(self, store: LogitStore, selection: Selection | None = None) -> None:
        """Of the selected sequences alone, which are then found by reading the ids of every shard."""
        self._store = store
        self._selection = selection or Selection()
        self._kept: dict[str, np.ndarray] = {}
        """By shard, the places of the selected sequences; empty where all are."""
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int, int | None], list[LabeledSequence]] = OrderedDict()
        self._shards, self._ends = self._listed()

    @property
    def total(self) -> int:
        """Committed sequences."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def refresh(self) -> None:
        """Take in the shards committed since."""
        with self._lock:
            self._store.refresh()
            self._shards, self._ends = self._listed()

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
        place = number - (int(self._ends[shard - 1]) if shard else 0)
        kept = self._kept.get(entry.name)
        local = place if kept is None else int(kept[place])
        reader = self._reader(entry)
        block = bisect.bisect_right(reader.block_starts, local) - 1
        key = (entry.name, block, top_k)
        if key not in self._blocks:
            self._blocks[key] = reader.read_block(block, top_k=top_k)
            while len(self._blocks) > MAX_CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        sequences, first = self._blocks[key], reader.block_starts[block]
        if kept is None:
            return sequences[local - first :]
        return [sequences[other - first] for other in kept[place:] if other < first + len(sequences)]

    def _reader(self, entry: ShardEntry) -> ShardReader:
        if entry.name not in self._readers:
            self._readers[entry.name] = self._store.open_shard(entry)
            while len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(entry.name)
        return self._readers[entry.name]

    def _listed(self) -> tuple[ShardIndex, np.ndarray]:
        """The committed shards, and how many selected sequences lie in each and before it (int64)."""
        shards = self._store.shards()
        if self._selection.takes_all:
            return shards, np.cumsum(shards.column("num_sequences"), dtype=np.int64)
        counts = np.zeros(len(shards), np.int64)
        for number, entry in enumerate(shards):
            if entry.name and entry.name not in self._kept:
                self._kept[entry.name] = self._places(entry)
            counts[number] = len(self._kept[entry.name]) if entry.name else 0
        return shards, np.cumsum(counts)

    def _places(self, entry: ShardEntry) -> np.ndarray:
        if not self._selection.takes_unit(entry):
            return np.zeros(0, np.int64)
        with self._store.open_shard(entry) as reader:
            kept = [self._selection.kept(Block(reader, at), entry) for at in range(reader.num_blocks)]
        return np.flatnonzero(np.concatenate(kept or [np.zeros(0, bool)]))
