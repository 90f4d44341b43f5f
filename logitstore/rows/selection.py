"""Which sequences of a store are meant, and where in it they are: conditions (`conditions.py`) that all hold.

Shape legend: S sequences, or units, or rejects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Literal

import numpy as np

from logitstore.inputs.parts import parent_id
from logitstore.manifest.fields import LabelSpec, ShardEntry
from logitstore.records import LabeledSequence, Reject
from logitstore.rows.conditions import (
    Block,
    BlockColumns,
    Columns,
    Condition,
    Joined,
    Outcome,
    id_hashes,
    named_records,
    texts_of,
    unit_columns,
)
from logitstore.rows.unmet import Unmet
from logitstore.shard.assembling import BlockSequences
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore

Measure = Literal["num_rows", "num_tokens"]
"""The count whose selected share estimates the selected share of the bytes."""
COUNTED_SHARDS = 16
"""In so many shards it is counted how much is selected, before a disk's room is looked at."""
NAMING_THREADS = 8
"""Shards whose ids are read side by side."""
INDEXED_SHARE = 0.1
"""Records up to this share of a store's sequences are looked up; for more, the ids of all shards are read."""


@dataclass(frozen=True)
class ShardPart:
    """A shard, and where in it selected sequences can be."""

    entry: ShardEntry
    places: tuple[int, ...] | None = None
    """Ascending, among the shard's living sequences; None for anywhere."""

    def blocks(self, reader: ShardReader) -> Sequence[int]:
        if self.places is None:
            return range(reader.num_blocks)
        found = np.searchsorted(reader.block_starts, self.places, side="right") - 1
        return np.unique(found).tolist()


@dataclass(frozen=True)
class Selection:
    """The sequences for which all conditions hold; none selects everything."""

    conditions: tuple[Condition, ...] = ()
    texts: tuple[str, ...] = ()
    """What was written, and digests of sets of ids: by these a dataset knows that it is the same choice."""

    @property
    def takes_all(self) -> bool:
        return not self.conditions

    @cached_property
    def unmet(self) -> Unmet:
        """What it names and no sequence has that it was asked of."""
        return Unmet(self.conditions)

    def __and__(self, other: Selection) -> Selection:
        return Selection(self.conditions + other.conditions, self.texts + other.texts)

    def takes_unit(self, entry: ShardEntry) -> bool:
        """Whether the unit can hold a selected sequence; others are not even read."""
        columns = unit_columns(entry, 1)
        self.unmet.look_at_unit(columns)
        return bool(self._outcome(columns, 1)[0][0])

    def kept(self, block: Block, entry: ShardEntry) -> np.ndarray:
        """bool [S], which sequences of a block are selected; no labels are fetched."""
        size = len(block.plain.record_id)
        columns = BlockColumns(block, unit_columns(entry, size))
        self.unmet.look_at(columns, size)
        return ~self._outcome(columns, size)[1]

    def kept_rejects(self, rejects: Sequence[Reject]) -> list[Reject]:
        """The rejects that are surely meant, by their record id alone."""
        if self.takes_all:
            return list(rejects)
        named = [reject for reject in rejects if reject.record_id is not None]
        record_ids = [str(reject.record_id) for reject in named]
        columns = {
            "record_id": texts_of(record_ids),
            "parent_id": texts_of([parent_id(name) for name in record_ids]),
            "hash": id_hashes(record_ids),
        }
        return [
            reject for reject, no in zip(named, self._outcome(columns, len(named))[1], strict=True) if not no
        ]

    def sequences(self, store: LogitStore, *, top_k: int | None = None) -> Iterator[LabeledSequence]:
        """The selected sequences in the store's order. Blocks that hold none are not decoded."""
        for part in self.parts(store):
            yield from self.of_part(store, part, top_k=top_k)

    def blocks(self, store: LogitStore, *, top_k: int | None = None) -> Iterator[BlockSequences]:
        """The selected sequences in the store's order, as columns."""
        for part in self.parts(store):
            yield from self.blocks_of_part(store, part, top_k=top_k)

    def names(self, store: LogitStore) -> Iterator[tuple[str, int]]:
        """Record id and sample of the selected sequences, in the store's order; no labels are read."""
        with ThreadPoolExecutor(NAMING_THREADS) as pool:
            for some in pool.map(lambda part: self._names_in(store, part), self.parts(store)):
                yield from some

    def _names_in(self, store: LogitStore, part: ShardPart) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        with store.open_shard(part.entry) as reader:
            for block in (Block(reader, index) for index in part.blocks(reader)):
                kept_S = self.kept(block, part.entry)
                named = zip(block.plain.record_id, block.plain.sample_index.tolist(), strict=True)
                found += compress(named, kept_S)
        return found

    def parts(self, store: LogitStore) -> list[ShardPart]:
        """The shards that can hold selected sequences, in the store's order."""
        shards = store.shards()
        places = self._places(store)
        some = [ShardPart(entry) for entry in shards] if places is None else []
        if places is not None:
            some = [ShardPart(shards[shard], tuple(inside)) for shard, inside in places.items()]
        return [part for part in some if part.entry.name and self.takes_unit(part.entry)]

    def of_part(
        self, store: LogitStore, part: ShardPart, *, top_k: int | None = None
    ) -> Iterator[LabeledSequence]:
        """The selected sequences of one shard."""
        with store.open_shard(part.entry) as reader:
            for index, kept_S in self._wanted(reader, part):
                sequences = reader.read_block(index, top_k=top_k)
                yield from sequences if kept_S is None else compress(sequences, kept_S)

    def blocks_of_part(
        self, store: LogitStore, part: ShardPart, *, top_k: int | None = None
    ) -> Iterator[BlockSequences]:
        """The selected sequences of one shard, as columns."""
        with store.open_shard(part.entry) as reader:
            for index, kept_S in self._wanted(reader, part):
                block = reader.read_columns(index, top_k=top_k)
                yield block if kept_S is None else block.filter(kept_S)

    def count_about(self, store: LogitStore, parts: Sequence[ShardPart], what: Measure) -> int:
        """Label rows or tokens of the selected sequences, by their share in COUNTED_SHARDS of the shards.

        Exact for so few. No labels are read; counting all would open each shard once more.
        """
        total = sum(getattr(part.entry, what) for part in parts)
        if self.takes_all:
            return total
        counted = parts[:: max(1, -(-len(parts) // COUNTED_SHARDS))]
        selected = sum(self._count_in_shard(store, part, what) for part in counted)
        return selected * total // max(1, sum(getattr(part.entry, what) for part in counted))

    def _count_in_shard(self, store: LogitStore, part: ShardPart, what: Measure) -> int:
        with store.open_shard(part.entry) as reader:
            blocks = [Block(reader, block) for block in part.blocks(reader)]
            return sum(int(getattr(one.plain, what)[self.kept(one, part.entry)].sum()) for one in blocks)

    def _places(self, store: LogitStore) -> dict[int, list[int]] | None:
        """Where the store's id index says that the records are which all must be among, by shard.

        None where no few records are named, or the ids would have to be read of the shards themselves.
        """
        named = list(named_records(self.conditions))
        if not named or min(map(len, named)) > len(store) * INDEXED_SHARE or not store.lookup().is_indexed:
            return None
        return store.lookup().shards_with(sorted(min(named, key=len)))

    def _wanted(self, reader: ShardReader, part: ShardPart) -> Iterator[tuple[int, np.ndarray | None]]:
        """The blocks that hold selected sequences, and which they are, bool [S]; None where all."""
        if self.takes_all:
            yield from ((index, None) for index in range(reader.num_blocks))
            return
        for index in part.blocks(reader):
            kept_S = self.kept(Block(reader, index), part.entry)
            if kept_S.any():
                yield index, None if kept_S.all() else kept_S

    def _outcome(self, columns: Columns, size: int) -> Outcome:
        return Joined(self.conditions, every=True).outcome(columns, size)


def measure_of(labels: LabelSpec) -> Measure:
    """Label rows make the size of a store; tokens do where there are no rows."""
    return "num_tokens" if labels.support == "none" else "num_rows"
