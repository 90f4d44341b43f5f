"""Any sequence by its index in storage order, for looking at data and for fixed evaluation sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from logitstore.records import LabeledSequence
from trainer.data.samples import Sample, as_learned
from trainer.data.sources import Source


@dataclass(frozen=True, slots=True)
class _Block:
    """Decoded sequences, and which of their shard they are."""

    shard: tuple[int, int]
    places: range
    sequences: list[LabeledSequence]


class RandomAccess:
    """Sequences that take part, store after store, shard after shard. Keeps the last block decoded."""

    def __init__(self, sources: Sequence[Source], top_k: int | None) -> None:
        self._sources = sources
        self._top_k = top_k
        self._shards = [
            (store, shard) for store, source in enumerate(sources) for shard in range(len(source.entries))
        ]
        self._ends = list(accumulate(length for source in sources for length in source.lengths))
        self._block: _Block | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        shard_index = bisect_right(self._ends, index)
        store, shard = self._shards[shard_index]
        within = index - (self._ends[shard_index - 1] if shard_index else 0)
        source = self._sources[store]
        sequence = self._read(store, shard, int(source.kept(shard)[within]))
        return Sample(sequence, source.manifest.labels, store=store)

    def _read(self, store: int, shard: int, place: int) -> LabeledSequence:
        if self._block is None or self._block.shard != (store, shard) or place not in self._block.places:
            source = self._sources[store]
            with source.naming_gone(shard), source.open(shard) as reader:
                block = int(np.searchsorted(reader.block_starts, place, side="right")) - 1
                start, sequences = reader.block_starts[block], reader.read_block(block, top_k=self._top_k)
            self._block = _Block((store, shard), range(start, start + len(sequences)), sequences)
        found = self._block.sequences[place - self._block.places.start]
        return as_learned(found, self._sources[store].manifest.labels)
