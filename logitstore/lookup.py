"""Sequences of a store by number and by record id, without reading the others.

A number counts the living sequences in the store's order. For ids the plain columns of every shard are read
once, in threads, and 16 bytes of each sequence are kept; labels are fetched of the blocks that are asked for.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from logitstore.manifest.fields import ShardEntry
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
        self._hashes: np.ndarray | None = None
        """uint64, ascending: of each sequence's record id; None until an id is asked for."""
        self._numbers = np.zeros(0, np.int64)
        """Of the sequences, beside `_hashes`."""

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
        numbers = [self._candidates(record_id) for record_id in asked]
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

    def _candidates(self, record_id: str) -> list[int]:
        if self._hashes is None:
            self._read_ids()
        assert self._hashes is not None
        value = _hash(record_id)
        first = int(np.searchsorted(self._hashes, value, side="left"))
        last = int(np.searchsorted(self._hashes, value, side="right"))
        return sorted(self._numbers[first:last].tolist())

    def _read_ids(self) -> None:
        entries = [entry for entry in self._shards if entry.num_sequences]
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(self._hashes_of, entries))
        hashes = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], order

    def _hashes_of(self, entry: ShardEntry) -> np.ndarray:
        with self._store.open_shard(entry) as reader:
            names = [
                name for block in range(reader.num_blocks) for name in reader.plain_columns(block).record_id
            ]
        return np.fromiter(map(_hash, names), np.uint64, len(names))


def _hash(record_id: str) -> np.uint64:
    digest = hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))
