"""Which units a store has, as a sequence of shard entries over the columns of its index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from logitstore.errors import CorruptManifestError, StoreChangedError
from logitstore.index import segments as index_segments
from logitstore.manifest.fields import ShardEntry

_ITERATION_BATCH = 1024
_DIGEST_BATCH = 65_536


class ShardIndex(Sequence[ShardEntry]):
    """Committed shard entries by unit, made on demand from columns: a million cost 0.2 GB, not 1 GB."""

    def __init__(self, table: pa.Table) -> None:
        unit_index = table.column("unit_index").to_numpy()
        self._order = np.argsort(unit_index, kind="stable")
        self._unit_index = unit_index[self._order]
        self._table = table
        self._batches = table.to_batches()
        self._batch_starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        repeated = np.flatnonzero(np.diff(self._unit_index) == 0)
        if repeated.size:
            pair = self._rows(self._order[repeated[0] : repeated[0] + 2], ["unit_id"])
            raise CorruptManifestError(
                f"the units {pair.column('unit_id').to_pylist()} of the store have one unit_index, "
                f"{self._unit_index[repeated[0]]}, so they are of different plans; delete the commit record "
                "of the one that does not belong here"
            )

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, position: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, position: slice) -> list[ShardEntry]: ...
    def __getitem__(self, position: int | slice) -> ShardEntry | list[ShardEntry]:
        if isinstance(position, slice):
            return index_segments.table_to_entries(self._rows(self._order[position]))
        if not -len(self) <= position < len(self):
            raise IndexError(f"shard {position} of {len(self)}")
        return index_segments.table_to_entries(self._rows(self._order[[position]]))[0]

    def __iter__(self) -> Iterator[ShardEntry]:
        for start in range(0, len(self), _ITERATION_BATCH):
            yield from self[start : start + _ITERATION_BATCH]

    def column(self, name: str) -> np.ndarray:
        """One numeric field of all entries in their order, for example `num_rows`."""
        return self._table.column(name).to_numpy()[self._order]

    def attempts(self) -> np.ndarray:
        """uint64: the attempt of each entry, which is its 16 hexadecimal digits."""
        return attempts_of(self._table)[self._order]

    def unit_ids(self) -> list[str]:
        starts = range(0, len(self), _DIGEST_BATCH)
        parts = (self._rows(self._order[start : start + _DIGEST_BATCH], ["unit_id"]) for start in starts)
        return [unit_id for part in parts for unit_id in part.column("unit_id").to_pylist()]

    def find(self, unit_index: int, unit_id: str) -> tuple[ShardEntry, str] | None:
        """Entry and attempt of a unit. Raises StoreChangedError if its place holds another unit."""
        position = self._position(unit_index)
        if position is None:
            return None
        entry = self[position]
        if entry.unit_id != unit_id:
            raise of_another_plan(unit_index, entry.unit_id, unit_id)
        attempt = self._rows(self._order[[position]]).column("attempt")[0].as_py().hex()
        return entry, attempt

    def having(self, units: Iterable[tuple[int, str]]) -> set[str]:
        """Which of these units, each with its `unit_index`, are in their places."""
        wanted = set(units)
        places = np.fromiter((unit_index for unit_index, _ in wanted), np.int64, len(wanted))
        found = self._rows(self._order[np.isin(self._unit_index, places)], ["unit_index", "unit_id"])
        pairs = zip(found.column("unit_index").to_pylist(), found.column("unit_id").to_pylist(), strict=True)
        return {unit_id for unit_index, unit_id in pairs if (unit_index, unit_id) in wanted}

    def _position(self, unit_index: int) -> int | None:
        position = int(np.searchsorted(self._unit_index, unit_index))
        found = position < len(self) and self._unit_index[position] == unit_index
        return position if found else None

    def _rows(self, rows: np.ndarray, names: list[str] | None = None) -> pa.Table:
        """Rows of the table by number. (Arrow's own `take` copies whole string columns each time.)"""
        batch_of_row = np.searchsorted(self._batch_starts, rows, side="right") - 1
        parts, places = [], []
        for number in np.unique(batch_of_row):
            place = np.flatnonzero(batch_of_row == number)
            batch = self._batches[number] if names is None else self._batches[number].select(names)
            parts.append(batch.take(pa.array(rows[place] - self._batch_starts[number])))
            places.append(place)
        if not parts:
            return self._table.slice(0, 0)
        return pa.Table.from_batches(parts).take(pa.array(np.argsort(np.concatenate(places))))

    def digest_into(self, hasher: hashlib.blake2b) -> None:
        """Feed what identifies the committed data, independent of how it is divided into segments."""
        for name in ("unit_index", "num_sequences", "num_rows", "num_tokens", "num_bytes"):
            hasher.update(self.column(name).astype("<i8").tobytes())
        for start in range(0, len(self), _DIGEST_BATCH):
            part = self._table.select(["unit_id", "checksum"]).take(
                self._order[start : start + _DIGEST_BATCH]
            )
            hasher.update("".join(f"{unit_id}\n" for unit_id in part.column("unit_id").to_pylist()).encode())
            hasher.update(b"".join(part.column("checksum").to_pylist()))


def attempts_of(table: pa.Table) -> np.ndarray:
    """uint64: the attempt of each row of a table of entries, which is its 16 hexadecimal digits."""
    chunks = table.column("attempt").chunks
    parts = [
        np.frombuffer(chunk.buffers()[1], ">u8", count=len(chunk), offset=8 * chunk.offset)
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, np.uint64), *parts], dtype=np.uint64)


def of_another_plan(unit_index: int, there: str, here: str) -> StoreChangedError:
    """The error for a place in the plan that holds the unit `there` where `here` was to be."""
    return StoreChangedError(
        f"unit index {unit_index} is {there} in the store and would be {here} now: the store was begun with "
        "another input, plan or selection, or by an earlier version that names units otherwise; go on with "
        "that, or write to a new place"
    )
