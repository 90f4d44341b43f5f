"""Sequences of a store by number and by record id, without reading the others.

A number counts the living sequences in the store's order. Ids are looked up in the id indexes of the
segments. Of shards that none covers the ids are read once, in threads, and 16 bytes of each sequence are
kept. Labels are fetched of the blocks that are asked for.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitstore.index.id_building import id_hashes
from logitstore.index.ids import IdIndex
from logitstore.records import LabeledSequence

if TYPE_CHECKING:
    from logitstore.store import LogitStore

THREADS = 16
MAX_SAMPLES_LISTED = 5


class Lookup:
    """Of the store as it was when this was made."""

    def __init__(self, store: LogitStore) -> None:
        self._store = store
        self._shards = store.shards()
        self._ends = np.cumsum(self._shards.column("num_sequences"), dtype=np.int64)
        self._starts = self._ends - self._shards.column("num_sequences")
        self._segments = store.index_segments()
        self._dropped = store.dropped_attempts()
        self._deletions = store.deletions
        self._indexes: list[_SegmentIds] | None = None
        """Of the segments that have one; None until an id is asked for."""
        self._hashes: np.ndarray | None = None
        """uint64: record ids of the sequences that no index covers; None until an id is asked for."""
        self._numbers = np.zeros(0, np.int64)
        """Of these sequences, beside `_hashes`."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, numbers: Iterable[int]) -> list[LabeledSequence]:
        """The sequences with these numbers, in their order; each block that holds some is decoded once.

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
            with self._store.open_shard(entry) as reader:
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
        return len(self._opened()) == len(self._segments)

    def place(self, number: int) -> tuple[int, int]:
        """(shard, place in it) of a sequence."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._starts[shard])

    def candidates(self, record_ids: Sequence[str]) -> list[list[int]]:
        """Of each id, numbers of the sequences that have its hash: its own, and hardly ever another's.

        Raises CorruptManifestError for a damaged id index.
        """
        asked = id_hashes(record_ids)
        wanted = np.unique(asked)
        found = [index.find(wanted) for index in self._opened()] + [self._among_loose(wanted)]
        hashes = np.concatenate([one for one, _ in found])
        numbers = np.concatenate([one for _, one in found])
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

    def _opened(self) -> list[_SegmentIds]:
        if self._indexes is None:
            unit_index = self._shards.column("unit_index")
            self._indexes = []
            for info, table in self._segments:
                index = IdIndex.open(self._store.objects, info)
                if index is not None:
                    attempts = [attempt.hex() for attempt in table.column("attempt").to_pylist()]
                    shard = np.searchsorted(unit_index, table.column("unit_index").to_numpy())
                    dropped = np.array([attempt in self._dropped for attempt in attempts], bool)
                    starts = np.full(len(attempts), -1)
                    starts[~dropped] = self._starts[shard[~dropped]]
                    lengths = table.column("num_sequences").to_numpy()
                    deleted = {
                        row: self._deletions.places(attempt)
                        for row, attempt in enumerate(attempts)
                        if attempt in self._deletions.attempts
                    }
                    self._indexes.append(_SegmentIds(index, starts, lengths, deleted, shard[~dropped]))
        return self._indexes

    def _among_loose(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and numbers of the sequences that no index covers, with one of the wanted hashes."""
        if self._hashes is None:
            self._read_loose()
        assert self._hashes is not None
        found = np.isin(self._hashes, wanted)
        return self._hashes[found], self._numbers[found]

    def _read_loose(self) -> None:
        covered = np.zeros(len(self._shards), bool)
        for index in self._opened():
            covered[index.shards] = True
        places = np.flatnonzero(~covered & (self._shards.column("num_sequences") > 0)).tolist()
        builder = self._store.id_builder()

        def read(place: int) -> np.ndarray:
            entry = self._shards[place]
            return builder.hashes(entry, self._store.deleted_places(entry))

        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(read, places))
        numbers = [
            int(self._starts[place]) + np.arange(len(part)) for place, part in zip(places, parts, strict=True)
        ]
        self._hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
        self._numbers = np.concatenate([np.zeros(0, np.int64), *numbers])


@dataclass(frozen=True)
class _SegmentIds:
    """The id index of a segment, and where its rows are in the store."""

    index: IdIndex
    starts: np.ndarray
    """int64, of each row: number of its shard's first sequence; -1 for a dropped attempt."""
    lengths: np.ndarray
    """int64, of each row: sequences of its shard, deleted ones included."""
    deleted: dict[int, np.ndarray]
    """By row: places of deleted sequences, where there are any."""
    shards: np.ndarray
    """int64: places among the store's shards of the rows that count."""

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and numbers of the living sequences with one of the wanted hashes."""
        entries = self.index.find(wanted)
        rows, places = entries["row"].astype(np.int64), entries["place"].astype(np.int64)
        if np.any(rows >= len(self.starts)) or np.any(places >= self.lengths[rows]):
            raise self.index.damaged()
        living = self.starts[rows] >= 0
        for row in set(rows.tolist()) & self.deleted.keys():
            here = rows == row
            living[here] &= ~np.isin(places[here], self.deleted[row])
            places[here] -= np.searchsorted(self.deleted[row], places[here])
        return entries["hash"][living], (self.starts[rows] + places)[living]
