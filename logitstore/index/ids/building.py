"""Making the id index of a segment: from those of the segments that it took up, and from shards.

It comes after the segment is in use, since labels count without it: what cannot be read now leaves the
segment without one, and readers then read the ids of its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import StoreError
from logitstore.index import segments as index_segments
from logitstore.index.ids.id_index import ENTRY, MAX_ENTRIES, IdIndex, encode_ids, ids_name
from logitstore.index.ids.shard_ids import plain_blocks
from logitstore.index.pointer import SegmentInfo
from logitstore.inputs.identity import digest_of
from logitstore.manifest.fields import LabelSpec, ShardEntry
from logitstore.objects.opening import Objects

THREADS = 16


@dataclass(frozen=True)
class IdBuilder:
    """What reading the ids of a store's shards needs."""

    objects: Objects
    labels: LabelSpec
    codebooks: Callable[[], CodebookSet | None]

    def build(
        self, segment: SegmentInfo, table: pa.Table, replaced: Sequence[tuple[SegmentInfo, pa.Table]] = ()
    ) -> str:
        """Put the id index of a segment with these entries; why there is none, if so.

        `replaced` are segments whose entries it took up, with their tables as they lie there.
        """
        total = int(table.column("num_sequences").to_numpy().sum())
        if total > MAX_ENTRIES:
            return f"{segment.name} has {total:,} sequences, an id index at most {MAX_ENTRIES:,}"
        try:
            self.objects.put(ids_name(segment.name), encode_ids(segment, self._entries(table, replaced)))
        except (StoreError, OSError) as error:
            return str(error)
        return ""

    def _entries(self, table: pa.Table, replaced: Sequence[tuple[SegmentInfo, pa.Table]]) -> np.ndarray:
        row_of = {attempt: row for row, attempt in enumerate(table.column("attempt").to_pylist())}
        parts, covered = [np.zeros(0, ENTRY)], set[bytes]()
        for info, old_table in replaced:
            old = IdIndex.open(self.objects, info)
            if old is None:
                continue
            attempts = old_table.column("attempt").to_pylist()
            new_rows = np.array([row_of.get(attempt, -1) for attempt in attempts], np.int64)
            entries = old.all().copy()
            old.check_places(entries, old_table.column("num_sequences").to_numpy())
            rows = new_rows[entries["row"]]
            entries["row"] = np.maximum(rows, 0)
            parts.append(entries[rows >= 0])
            covered.update(attempts)
        rows = [row for attempt, row in row_of.items() if attempt not in covered]
        missing = index_segments.table_to_entries(table.take(rows)) if rows else []
        parts += [_entries_of(row, hashes) for row, hashes in zip(rows, self.hashes(missing), strict=True)]
        return np.concatenate(parts)

    def hashes(self, entries: Sequence[ShardEntry]) -> list[np.ndarray]:
        """uint64, of the record ids of each shard, deleted ones included; no labels are read."""
        if not any(entry.name for entry in entries):
            return [np.zeros(0, np.uint64)] * len(entries)
        codebooks = self.codebooks()
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda entry: self._hashes_of(entry, codebooks), entries))

    def _hashes_of(self, entry: ShardEntry, codebooks: CodebookSet | None) -> np.ndarray:
        if not entry.name:
            return np.zeros(0, np.uint64)
        blocks = plain_blocks(self.objects, entry, self.labels, codebooks)
        return id_hashes(name for plain in blocks for name in plain.record_id)


def _entries_of(row: int, hashes: np.ndarray) -> np.ndarray:
    entries = np.zeros(len(hashes), ENTRY)
    entries["hash"], entries["row"], entries["place"] = hashes, row, np.arange(len(hashes))
    return entries


def id_hashes(record_ids: Iterable[str]) -> np.ndarray:
    """uint64: the first 8 bytes of each id's digest, the first byte the highest."""
    digests = b"".join(digest_of(record_id)[:8] for record_id in record_ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)
