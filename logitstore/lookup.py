"""Sequences of a store by number and by record id, without reading the others.

A number counts the living sequences in the store's order. Ids are looked up in the id indexes of the
segments. Of shards that none covers the ids are read once, in threads, and 16 bytes of each sequence are
kept. Labels are fetched of the blocks that are asked for.

Compaction removes the id indexes of the segments that it takes up. A lookup made before it goes on with
those of the index as it is then: what they say counts for the shards that the lookup has.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from logitstore.errors import NOT_THERE
from logitstore.index.entries import attempts_of
from logitstore.index.ids.building import id_hashes
from logitstore.index.ids.id_index import IdIndex, are_among
from logitstore.records import LabeledSequence

if TYPE_CHECKING:
    from logitstore.store import LogitStore

MAX_SAMPLES_LISTED = 5
MAX_TRIES = 5
"""So often is an id index that went away looked for anew, before the ids are read from the shards."""


@dataclass
class KeptIds:
    """What was read of a store's ids and holds for every later lookup."""

    opened: dict[str, IdIndex] = field(default_factory=dict)
    """By the name of the segment, which is never written twice."""
    read: dict[int, np.ndarray] = field(default_factory=dict)
    """By attempt: uint64, of the record ids of a shard that no index covers, deleted ones included."""


class Lookup:
    """Finds sequences of the store as it was when this object was made."""

    def __init__(self, store: LogitStore, kept: KeptIds) -> None:
        """`kept` is what other lookups of this store have read, and takes in what this one reads."""
        self._store = store
        self._shards = store.shards()
        self._ends = np.cumsum(self._shards.column("num_sequences"), dtype=np.int64)
        self._starts = self._ends - self._shards.column("num_sequences")
        self._attempts = self._shards.attempts()
        self._segments = store.index_segments()
        self._deletions = store.deletions
        self._kept = kept
        self._known: _Known | None = None
        """None until an id is asked for."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, numbers: Iterable[int]) -> list[LabeledSequence]:
        """The sequences with these numbers, in their order; each block that holds some is decoded once, and a
        shard of which most are asked for is fetched by one request.

        Raises IndexError for a number that the store does not have.
        """
        asked = list(numbers)
        found: dict[int, LabeledSequence] = {}
        by_shard: dict[int, list[int]] = {}
        for number in dict.fromkeys(asked):
            if not 0 <= number < len(self):
                raise IndexError(f"sequence {number} of {len(self)}")
            by_shard.setdefault(int(np.searchsorted(self._ends, number, side="right")), []).append(number)
        for shard, wanted in by_shard.items():
            entry = self._shards[shard]
            first = int(self._ends[shard]) - entry.num_sequences
            with self._store.open_shard(entry, whole=2 * len(wanted) > entry.num_sequences) as reader:
                blocks: dict[int, list[int]] = {}
                for number in wanted:
                    block = bisect.bisect_right(reader.block_starts, number - first) - 1
                    blocks.setdefault(block, []).append(number)
                for block, inside in blocks.items():
                    sequences = reader.read_block(block)
                    start = first + reader.block_starts[block]
                    found.update((number, sequences[number - start]) for number in inside)
        return [found[number] for number in asked]

    def find(self, record_ids: Iterable[str]) -> dict[str, list[LabeledSequence]]:
        """All samples of each record, in the store's order; an empty list for an id that is not there."""
        asked = list(dict.fromkeys(record_ids))
        numbers = self.candidates(asked)
        every = self.read(number for some in numbers for number in some)
        rest = iter(every)
        found = {name: [next(rest) for _ in some] for name, some in zip(asked, numbers, strict=True)}
        # Two ids may have one hash.
        return {name: [one for one in some if one.record_id == name] for name, some in found.items()}

    def one(self, record_id: str, sample_index: int | None = None) -> LabeledSequence:
        """The sequence of a record. Raises KeyError where there is none, or several and none is named."""
        return self._only(record_id, self.find([record_id])[record_id], sample_index)

    def one_of_each(self, record_ids: Iterable[str]) -> list[LabeledSequence]:
        """The sequences of these records, in their order. Raises KeyError as `one` does."""
        asked = list(record_ids)
        found = self.find(asked)
        return [self._only(record_id, found[record_id], None) for record_id in asked]

    def _only(
        self, record_id: str, samples: list[LabeledSequence], sample_index: int | None
    ) -> LabeledSequence:
        chosen = [one for one in samples if sample_index in (None, one.sample_index)]
        if len(chosen) == 1:
            return chosen[0]
        have = ", ".join(str(one.sample_index) for one in samples[:MAX_SAMPLES_LISTED])
        raise KeyError(
            f"record {record_id!r:.120} has the samples {have}; ask for one, as in store[record_id, 0]"
            if samples
            else f"record {record_id!r:.120} is not in {self._store.uri}"
        )

    @property
    def is_indexed(self) -> bool:
        """Whether all segments of the store's index have an id index."""
        return len(self._indexes()) == len(self._segments)

    def place(self, number: int) -> tuple[int, int]:
        """(shard, place in it) of a sequence."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._starts[shard])

    def candidates(self, record_ids: Sequence[str]) -> list[list[int]]:
        """For each id, numbers of the sequences that have its hash: its own, and hardly ever another's.

        Raises CorruptManifestError for a damaged id index.
        """
        asked = id_hashes(record_ids)
        hashes, numbers = self._find(np.unique(asked))
        order = np.lexsort((numbers, hashes))
        hashes, numbers = hashes[order], numbers[order]
        first = np.searchsorted(hashes, asked, side="left")
        last = np.searchsorted(hashes, asked, side="right")
        return [numbers[a:b].tolist() for a, b in zip(first, last, strict=True)]

    def shards_with(self, record_ids: Sequence[str]) -> dict[int, list[int]]:
        """Places of shards that may hold these records, and the numbers of the sequences within each."""
        found: dict[int, list[int]] = {}
        for number in sorted({number for some in self.candidates(record_ids) for number in some}):
            shard = int(np.searchsorted(self._ends, number, side="right"))
            found.setdefault(shard, []).append(number - int(self._starts[shard]))
        return found

    def _find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and numbers of the living sequences with one of the wanted hashes, ascending ones."""
        for _ in range(MAX_TRIES):
            known = self._known or self._know(self._indexes())
            self._known = known
            try:
                return known.find(wanted)
            except NOT_THERE:
                # Compaction took the segment up. (A key that may not list gets a refusal for what is gone.)
                self._kept.opened, self._known = {}, None
        self._known = known = self._know([])
        return known.find(wanted)

    def _know(self, indexes: list[_SegmentIds]) -> _Known:
        """Where the ids are known from: these indexes, and the shards that none of them covers."""
        covered = np.zeros(len(self._shards), bool)
        for index in indexes:
            covered[index.shards] = True
        places = np.flatnonzero(~covered & (self._shards.column("num_sequences") > 0)).tolist()
        missing = [place for place in places if int(self._attempts[place]) not in self._kept.read]
        new = self._store.id_builder().hashes([self._shards[place] for place in missing])
        read = {**self._kept.read, **dict(zip(self._attempts[missing].tolist(), new, strict=True))}
        attempts = self._attempts[places].tolist()
        hashes = np.concatenate([np.zeros(0, np.uint64), *(read[attempt] for attempt in attempts)])
        ends = np.cumsum([len(read[attempt]) for attempt in attempts], dtype=np.int64)
        self._kept.read = dict(zip(attempts, np.split(hashes, ends[:-1]), strict=True)) if attempts else {}
        numbers = [np.zeros(0, np.int64)]
        for place, attempt in zip(places, attempts, strict=True):
            living = np.ones(len(read[attempt]), bool)
            living[self._deletions.places(f"{attempt:016x}")] = False
            numbers.append(np.where(living, int(self._starts[place]) + np.cumsum(living) - 1, -1))
        return _Known(indexes, hashes, np.concatenate(numbers))

    def _indexes(self) -> list[_SegmentIds]:
        """Id indexes of the segments; where a segment lacks one, those of the index as it is now."""
        found = self._open_indexes()
        if len(found) < len(self._segments):
            self._segments = self._store.newest_index_segments()
            found = self._open_indexes()
        return [self._segment_ids(index, table) for index, table in found]

    def _open_indexes(self) -> list[tuple[IdIndex, pa.Table]]:
        opened = self._kept.opened
        for info, _ in self._segments:
            if info.name not in opened and (index := IdIndex.open(self._store.objects, info)):
                opened[info.name] = index
        return [(opened[info.name], table) for info, table in self._segments if info.name in opened]

    def _segment_ids(self, index: IdIndex, table: pa.Table) -> _SegmentIds:
        """What the index says of the shards that this lookup has; what it says of others is passed by."""
        attempts = attempts_of(table)
        place = np.searchsorted(self._shards.column("unit_index"), table.column("unit_index").to_numpy())
        place = np.minimum(place, max(0, len(self._shards) - 1))
        here = self._attempts[place] == attempts if len(self._shards) else np.zeros(len(attempts), bool)
        starts = np.full(len(attempts), -1)
        starts[here] = self._starts[place[here]]
        gone = np.array([int(attempt, 16) for attempt in self._deletions.attempts], np.uint64)
        deleted = {
            row: self._deletions.places(f"{int(attempts[row]):016x}")
            for row in np.flatnonzero(here & are_among(attempts, gone)).tolist()
        }
        return _SegmentIds(index, starts, table.column("num_sequences").to_numpy(), deleted, place[here])


@dataclass(frozen=True)
class _Known:
    """Where the ids of a store's sequences are known from."""

    indexes: list[_SegmentIds]
    hashes: np.ndarray
    """uint64: of the record ids of the sequences that no index covers."""
    numbers: np.ndarray
    """int64: numbers of these sequences; -1 for a deleted one."""

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and numbers of the living sequences with one of the wanted hashes, ascending ones."""
        loose = are_among(self.hashes, wanted) & (self.numbers >= 0)
        found = [*(index.find(wanted) for index in self.indexes), (self.hashes[loose], self.numbers[loose])]
        return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


@dataclass(frozen=True)
class _SegmentIds:
    """The id index of a segment, and where its rows are in the store."""

    index: IdIndex
    starts: np.ndarray
    """int64, of each row: number of its shard's first sequence; -1 for an attempt that does not count."""
    lengths: np.ndarray
    """int64, of each row: sequences of its shard, deleted ones included."""
    deleted: dict[int, np.ndarray]
    """By row: places of deleted sequences, where there are any."""
    shards: np.ndarray
    """int64: places among the store's shards of the rows that count."""

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and numbers of the living sequences with one of the wanted hashes."""
        entries = self.index.find(wanted)
        self.index.check_places(entries, self.lengths)
        rows, places = entries["row"].astype(np.int64), entries["place"].astype(np.int64)
        living = self.starts[rows] >= 0
        for row in set(rows.tolist()) & self.deleted.keys():
            here = rows == row
            living[here] &= ~np.isin(places[here], self.deleted[row])
            places[here] -= np.searchsorted(self.deleted[row], places[here])
        return entries["hash"][living], (self.starts[rows] + places)[living]
