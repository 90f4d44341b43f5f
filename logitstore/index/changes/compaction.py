"""Compaction: moves commit records into index segments, beside writers, readers and other compactors.

The order of steps makes every moment consistent: segment written, `index.json` swapped if unchanged,
only then records and replaced segments deleted. Nothing is deleted after a swap that seems to have
failed: it may have succeeded, its reply lost, and another compactor may have built on it.

Segments grow geometrically, as in a log-structured merge: a new one takes in its predecessors while
they are at most `MERGE_FACTOR` times its size, so an entry is rewritten O(log n) times and a million
units lie in about ten segments.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from dataclasses import dataclass

import pyarrow as pa

from logitstore.errors import ObjectStoreError, StoreChangedError
from logitstore.index import segments as index_segments
from logitstore.index.commits import CommitRecord
from logitstore.index.committed import CommittedUnits
from logitstore.index.deletions import DeletedSequences, Tombstone, write_tombstone
from logitstore.index.ids.building import IdBuilder
from logitstore.index.ids.id_index import ids_name
from logitstore.index.pointer import INDEX_NAME, INDEX_PREFIX, IndexPointer, SegmentInfo, swap_pointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.objects.opening import Objects

MERGE_FACTOR = 4
MAX_SWAP_TRIES = 20
REASON = "left by a writer that knew nothing of the deletion; found by compaction"


@dataclass(frozen=True, slots=True)
class CompactionResult:
    num_records: int
    """Commit records moved into the index."""
    num_entries: int
    """Units in the index now."""
    num_segments: int
    num_late: int
    """Records of units that the index already had."""
    not_removed: str = ""
    """Why records or segments that are garbage by now could not be removed; "" if they were."""
    not_indexed: str = ""
    """Why the new segment has no index of record ids, which readers do without; "" if it has one."""
    taken_out: tuple[DeletedSequences, ...] = ()
    """Sequences of deleted records that were in the records' shards, and that a tombstone names now."""


def compact(
    objects: Objects, manifest: str, ids: IdBuilder | None = None, reading: TailDeletions | None = None
) -> CompactionResult:
    """Move all commit records into the index. Safe to interrupt and to run anywhere at any time.

    `manifest` is the store's `manifest_hash`. With `ids` the new segment gets an index of record ids. A store
    with deletions needs `reading`: what its commit records bring of deleted records stays deleted.

    Raises StoreChangedError if other compactors keep winning, and what reading the store raises.
    """
    units = CommittedUnits(objects, manifest, reading)
    lost = ""  # the tombstone of a swap that was lost
    for _ in range(MAX_SWAP_TRIES):
        tried = units.pointer_etag
        units.refresh()
        if lost and units.pointer_etag != tried:
            _remove_unnamed(objects, lost, units.pointer)
            lost = ""
        records = list(units.tail.values())
        if not records:
            return _result(units.pointer, 0, len(units.late), _clean_up(objects, units.late))
        units.entries()  # refuses two units in one place, which no reader could tell apart afterwards
        kept, merged = _split_segments(units.pointer, len(records))
        segment, table = _write_merged(objects, units, merged, records)
        taken_out = tuple(units.deleted_in_tail())
        deleted = units.pointer.deleted
        if taken_out:
            tombstone = Tombstone(manifest, REASON, time.time(), records="", units=taken_out)
            deleted = (*deleted, write_tombstone(objects, tombstone, secrets.token_hex(8)))
            lost = deleted[-1].name
        pointer = dataclasses.replace(
            units.pointer,
            generation=units.pointer.generation + 1,
            segments=(*kept, segment),
            deleted=deleted,
        )
        if swap_pointer(objects, units.pointer_etag, pointer):
            replaced = [(info, units.segments.raw(info.name)) for info in merged]
            not_indexed = ids.build(segment, table, replaced) if ids is not None else ""
            # Whatever record a unit of the index has is garbage by now, this one's or a late rival's.
            garbage = [units.record_name(record.shard.unit_id) for record in records] + units.late
            garbage += [name for info in merged for name in _names(info)]
            result = _result(pointer, len(records), len(units.late), _clean_up(objects, garbage))
            return dataclasses.replace(result, not_indexed=not_indexed, taken_out=taken_out)
        # That the swap failed is no proof that `segment` is in no index: the reply may have been lost and
        # another compactor may have built on it. It stays, for `verify --repair` to judge.
    raise StoreChangedError(
        f"{objects.uri}: {MAX_SWAP_TRIES} attempts to replace {INDEX_NAME} lost to other compactors; "
        "let one process compact"
    )


def _remove_unnamed(objects: Objects, name: str, pointer: IndexPointer) -> None:
    """Remove a tombstone whose swap was lost, unless it is named.

    `index.json` has changed, so the swap cannot succeed any more; had it, every index since would name it.
    """
    if all(info.name != name for info in pointer.deleted):
        _clean_up(objects, [name])


def fence_compactors(objects: Objects, manifest: str) -> None:
    """Replace `index.json` by itself with a higher generation, so that no swap begun before can succeed.

    Raises StoreChangedError if other processes keep replacing it.
    """
    units = CommittedUnits(objects, manifest)
    for _ in range(MAX_SWAP_TRIES):
        units.refresh_index()
        pointer = dataclasses.replace(units.pointer, generation=units.pointer.generation + 1)
        if swap_pointer(objects, units.pointer_etag, pointer):
            return
    raise StoreChangedError(
        f"{objects.uri}: {MAX_SWAP_TRIES} attempts to replace {INDEX_NAME} lost to compactors; let one "
        "process compact"
    )


def _split_segments(pointer: IndexPointer, num_new: int) -> tuple[list[SegmentInfo], list[SegmentInfo]]:
    """Segments to keep, and the youngest ones to merge with `num_new` entries."""
    kept, merged, size = list(pointer.segments), [], num_new
    while kept and kept[-1].num_entries <= MERGE_FACTOR * size:
        merged.append(kept.pop())
        size += merged[-1].num_entries
    return kept, merged


def _write_merged(
    objects: Objects, units: CommittedUnits, merged: list[SegmentInfo], records: list[CommitRecord]
) -> tuple[SegmentInfo, pa.Table]:
    entries = [units.segments.living(info.name) for info in merged]
    rejects = [units.segments.load_rejects(info) for info in merged if info.rejects_name]
    entries.append(index_segments.entries_to_table(records))
    rejects.append(index_segments.rejects_to_table(records))
    table = index_segments.merge_tables(entries)
    return _put_tables(objects, secrets.token_hex(8), table, index_segments.merge_tables(rejects)), table


def write_segment_objects(objects: Objects, records: list[CommitRecord], token: str) -> SegmentInfo:
    """Put a segment of these records, and its rejects beside it, under names made of `token`."""
    entries, rejects = index_segments.entries_to_table(records), index_segments.rejects_to_table(records)
    return _put_tables(objects, token, entries, rejects)


def _put_tables(objects: Objects, token: str, entries: pa.Table, rejects: pa.Table) -> SegmentInfo:
    info = _put(objects, f"{INDEX_PREFIX}{token}.arrow", entries)
    if rejects.num_rows == 0:
        return info
    other = _put(objects, f"{INDEX_PREFIX}{token}-rejects.arrow", rejects)
    return dataclasses.replace(
        info,
        rejects_name=other.name,
        num_rejects=other.num_entries,
        rejects_bytes=other.num_bytes,
        rejects_checksum=other.checksum,
    )


def _put(objects: Objects, name: str, table: pa.Table) -> SegmentInfo:
    data = index_segments.write_segment(table)
    objects.put(name, data)
    return SegmentInfo(name, table.num_rows, len(data), index_segments.checksum(data), "", 0, 0, "")


def _names(info: SegmentInfo) -> list[str]:
    return [name for name in (info.name, info.rejects_name, ids_name(info.name)) if name]


def _clean_up(objects: Objects, names: list[str]) -> str:
    """Remove garbage; why it failed, if it did: the index is in place, and `verify --repair` comes later."""
    try:
        objects.delete_many(names)
    except ObjectStoreError as error:
        return str(error)
    return ""


def _result(pointer: IndexPointer, num_records: int, num_late: int, not_removed: str) -> CompactionResult:
    num_entries = sum(info.num_entries for info in pointer.segments)
    return CompactionResult(num_records, num_entries, len(pointer.segments), num_late, not_removed)
