"""Sequences of a store by number: any page of a million sequences without reading the others.

Sequence numbers run over the committed shards in the plan's order. While a job runs, a unit that
commits late moves the numbers behind it; a finished store's numbers never change.
"""

from __future__ import annotations

import bisect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logitstore.common.store_warning import StoreWarning
from logitstore.index.entries import ShardIndex
from logitstore.manifest.fields import ShardEntry
from logitstore.records import LabeledSequence
from logitstore.rows.conditions import Block
from logitstore.rows.selection import Selection
from logitstore.shard.reader import ShardReader
from logitstore.shard.sequence_columns import to_flags
from logitstore.store import LogitStore

MAX_OPEN_SHARDS = 8
MAX_CACHED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """What the list shows of a sequence; the fields are those of LabeledSequence."""

    record_id: str
    sample_index: int
    token_ids_T: np.ndarray
    prompt_length: int
    segments_T: np.ndarray | None
    num_rows: int
    finish_reason: str
    flags: tuple[str, ...]


class SequencePages:
    """Random access to the sequences of a store; safe to call from several threads."""

    def __init__(self, store: LogitStore, selection: Selection | None = None) -> None:
        """With a selection, only its sequences are shown; finding them reads the ids of every shard."""
        self._store = store
        self._selection = selection or Selection()
        self._kept: dict[str, np.ndarray] = {}
        """By shard, the places of the selected sequences; empty where all are."""
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int, int | None], list[LabeledSequence]] = OrderedDict()
        self._deletions = store.deletions
        self._shards, self._ends = self._listed()
        self._selection.unmet.warn(store.uri)
        if not self.total and not self._selection.takes_all:
            warnings.warn(f"{store.uri}: no sequence is selected", StoreWarning, stacklevel=2)

    @property
    def total(self) -> int:
        """Committed sequences."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def refresh(self) -> None:
        """Take in the shards committed since, and leave out what was deleted since."""
        with self._lock:
            self._store.refresh()
            self._follow()

    def read(self, start: int, count: int, *, top_k: int | None = None) -> list[LabeledSequence]:
        """Sequences `start` to `start + count`, as many as there are; `top_k` entries of each row.

        Raises:
            IndexError: `start` is negative or not below `total`.
        """
        if self._store.manifest.labels.support == "given":
            top_k = None  # the first of given entries are no top-K
        with self._lock:
            self._check(start)
            stop = min(start + count, self.total)
            found: list[LabeledSequence] = []
            while start + len(found) < stop:
                found += self._block_from(start + len(found), top_k)[: stop - start - len(found)]
            return found

    def lines(self, numbers: Sequence[int]) -> list[Line]:
        """What the list shows of these sequences, in their order; no labels are fetched.

        Raises:
            IndexError: a number is negative or not below `total`.
        """
        with self._lock:
            by_block: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for number in numbers:
                self._check(number)
                shard, local = self._local(number)
                starts = self._reader(self._shards[shard]).block_starts
                block = bisect.bisect_right(starts, local) - 1
                by_block.setdefault((shard, block), []).append((number, local - starts[block]))
            found: dict[int, Line] = {}
            for (shard, block), wanted in by_block.items():
                reader = self._reader(self._shards[shard])
                plain, tokens = reader.plain_columns(block), reader.token_ids(block)
                segments = reader.segments(block)
                for number, place in wanted:
                    found[number] = Line(
                        record_id=plain.record_id[place],
                        sample_index=int(plain.sample_index[place]),
                        token_ids_T=tokens[place],
                        prompt_length=int(plain.prompt_length[place]),
                        segments_T=segments[place],
                        num_rows=int(plain.num_rows[place]),
                        finish_reason=plain.finish_reason[place],
                        flags=to_flags(plain.flags[place]),
                    )
            return [found[number] for number in numbers]

    def shards(self) -> tuple[ShardIndex, np.ndarray]:
        """The committed shards, the same object until they change, and the number of each one's first
        selected sequence."""
        with self._lock:
            return self._shards, np.concatenate([[0], self._ends])[:-1]

    def find(self, record_id: str, sample_index: int) -> int | None:
        """The number of a record's sample; None where it is not there or not selected.

        The first call reads the ids of the shards that no id index covers.
        """
        with self._lock:
            self._follow()
            lookup = self._store.lookup()
            (candidates,) = lookup.candidates([record_id])
            numbers = [self._selected_number(*lookup.place(number)) for number in candidates]
        for number in numbers:
            if number is not None:
                (sequence,) = self.read(number, 1, top_k=1)
                if (sequence.record_id, sequence.sample_index) == (record_id, sample_index):
                    return number
        return None

    def _selected_number(self, shard: int, place: int) -> int | None:
        """The number of the sequence at this place of a shard; None where it is not selected."""
        kept = self._kept.get(self._shards[shard].name)
        before = int(self._ends[shard - 1]) if shard else 0
        if kept is None:
            return before + place
        at = int(np.searchsorted(kept, place))
        return before + at if at < len(kept) and kept[at] == place else None

    def _block_from(self, number: int, top_k: int | None) -> list[LabeledSequence]:
        """The sequences from `number` to the end of its block."""
        shard, local = self._local(number)
        entry = self._shards[shard]
        kept = self._kept.get(entry.name)
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
        others = kept[np.searchsorted(kept, local) :]
        return [sequences[other - first] for other in others if other < first + len(sequences)]

    def _check(self, number: int) -> None:
        if not 0 <= number < self.total:
            raise IndexError(
                f"sequence {number} does not exist: the store has {self.total}; ask for 0 to {self.total - 1}"
            )

    def _local(self, number: int) -> tuple[int, int]:
        """(shard, place among all of its sequences) of a selected sequence."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        place = number - (int(self._ends[shard - 1]) if shard else 0)
        kept = self._kept.get(self._shards[shard].name)
        return shard, place if kept is None else int(kept[place])

    def _reader(self, entry: ShardEntry) -> ShardReader:
        if entry.name not in self._readers:
            self._readers[entry.name] = self._store.open_shard(entry)
            while len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(entry.name)
        return self._readers[entry.name]

    def close(self) -> None:
        """Close the shards that are kept open; reading opens them again."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _follow(self) -> None:
        """Show the store as it was last refreshed."""
        if self._store.shards() is self._shards:
            return
        if self._store.deletions is not self._deletions:
            # What is kept of a shard counts the sequences that it had.
            self._readers.clear()
            self._blocks.clear()
            self._kept.clear()
            self._deletions = self._store.deletions
        self._shards, self._ends = self._listed()

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
