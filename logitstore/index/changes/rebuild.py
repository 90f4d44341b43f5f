"""An index from the shards: for a store whose `index.json` or segments are lost, damaged or out of date."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import CorruptShardError, StoreChangedError, StoreError
from logitstore.index import segments as index_segments
from logitstore.index.changes.compaction import write_segment_objects
from logitstore.index.changes.deletions_found import deletions_for, find_deletions
from logitstore.index.changes.gathering import Known, gather
from logitstore.index.commits import SHARDS_PREFIX, CommitRecord, ShardPlace, shard_place
from logitstore.index.deletions import DeletedRecords, DeletedSequences
from logitstore.index.ids.building import IdBuilder
from logitstore.index.pointer import INDEX_NAME, IndexPointer, swap_pointer
from logitstore.manifest.fields import RECORD_PARTS, LabelSpec, Manifest, ShardEntry
from logitstore.manifest.reading import manifest_hash
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import MAX_SHARD_BYTES

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What `rebuild_index` put into the index, and where it knew it from."""

    num_units: int
    num_from_records: int
    """Units whose entry stood in a commit record or a segment, rejects included."""
    num_from_shards: int
    """Units known from their shard alone: their rejects, if they had any, are not known."""
    num_unreadable: int
    """Shards that are left out since they cannot be read; they stay where they are."""
    num_rivals: int
    """Sound shards that are left out since another shard of their unit, or of its place, is taken."""
    unread: tuple[str, ...] = ()
    """Why these shards could not be read, nor parts of the old index, which are left out as well."""
    not_indexed: str = ""
    """Why the segment has no index of record ids, which readers do without; "" if it has one."""


def rebuild_index(
    objects: Objects, head: Manifest, codebooks: CodebookSet | None, progress: Progress | None = None
) -> RebuildResult:
    """Write an index of every unit that has a sound shard here, or that a readable record or segment has.

    Reads every shard. Entries of the present index and of commit records are taken before those of old
    segments, and those before what only the shard tells. Deletes no labels. Deleted records stay deleted,
    also in shards that nothing named before.

    Raises StoreChangedError if the index is replaced meanwhile, CorruptManifestError and
    ObjectNotFoundError for a deletion that cannot be read, and what reading objects raises.
    """
    manifest, labels = manifest_hash(head), head.labels
    known = gather(objects, manifest)
    deletions = find_deletions(objects, manifest, known.pointer)
    deleted = deletions.records(has_parts=RECORD_PARTS in head.features)
    sound, num_unreadable = _read_shards(objects, manifest, labels, codebooks, known, deleted, progress)
    chosen, num_rivals = _choose(known, [record for record, _ in sound])
    records = sorted(chosen.values(), key=lambda record: record.shard.unit_index)
    segments = (write_segment_objects(objects, records, secrets.token_hex(8)),) if records else ()
    tombstones = deletions_for(
        objects,
        manifest,
        deletions,
        {record.attempt: unit for record, unit in sound},
        frozenset(record.attempt for record in records),
    )
    pointer = IndexPointer(
        generation=known.pointer.generation + 1 if known.pointer is not None else 1,
        manifest=manifest,
        segments=segments,
        dropped=known.dropped,
        deleted=tombstones,
    )
    if not swap_pointer(objects, known.etag, pointer):
        raise StoreChangedError(
            f"{objects.uri}: {INDEX_NAME} was replaced while it was being rebuilt; stop the job, then repeat"
        )
    objects.delete_many(info.name for info in deletions.infos if info not in tombstones)
    builder = IdBuilder(objects, labels, lambda: codebooks)
    not_indexed = [builder.build(info, index_segments.entries_to_table(records)) for info in segments]
    from_records = sum((unit, record.attempt) in known.records for unit, record in chosen.items())
    return RebuildResult(
        num_units=len(records),
        num_from_records=from_records,
        num_from_shards=len(records) - from_records,
        num_unreadable=num_unreadable,
        num_rivals=num_rivals,
        unread=tuple(known.unread),
        not_indexed="".join(not_indexed),
    )


def _read_shards(
    objects: Objects,
    manifest: str,
    labels: LabelSpec,
    codebooks: CodebookSet | None,
    known: Known,
    deleted: DeletedRecords,
    progress: Progress | None,
) -> tuple[list[tuple[CommitRecord, DeletedSequences | None]], int]:
    """A record for each sound shard whose attempt was not dropped, with its sequences that are deleted, and
    how many shards cannot be read."""
    dropped = {(one.unit_id, one.attempt) for one in known.dropped}
    found: list[tuple[CommitRecord, DeletedSequences | None]] = []
    num_unreadable = 0
    infos = objects.list_info(SHARDS_PREFIX)
    for done, info in enumerate(infos):
        if progress:
            progress("shards", done, len(infos))
        place = shard_place(info.name)
        if place is None or (place.unit_id, place.attempt) in dropped:
            continue
        try:
            entry, unit = _read_shard(objects, info, place, labels, codebooks, deleted)
        except OSError:
            raise
        except StoreError as error:
            num_unreadable += 1
            known.unread.append(f"{info.name}: {error}")
            continue
        standing = known.records.get((place.unit_id, place.attempt))
        if standing is None or standing.shard.checksum != entry.checksum:
            standing = CommitRecord(place.attempt, manifest, entry)
        found.append((standing, unit))
    return found, num_unreadable


def _read_shard(
    objects: Objects,
    info: ObjectInfo,
    place: ShardPlace,
    labels: LabelSpec,
    codebooks: CodebookSet | None,
    deleted: DeletedRecords,
) -> tuple[ShardEntry, DeletedSequences | None]:
    """The entry that a shard's commit record would hold, but for rejects and times, and what is deleted of
    it. Reads all of it.

    Raises CorruptShardError for what is no shard of this store.
    """
    if info.num_bytes > MAX_SHARD_BYTES:
        raise CorruptShardError(f"{info.name} has {info.num_bytes} bytes, a shard at most {MAX_SHARD_BYTES}")
    data = objects.get(info.name, max_bytes=info.num_bytes)
    num_sequences = num_rows = num_tokens = gone_rows = gone_tokens = 0
    gone: list[int] = []
    for sequence in ShardReader(io.BytesIO(data), labels, codebooks).iter_sequences():
        if sequence.record_id in deleted:
            gone.append(num_sequences)
            gone_rows += sequence.rows.num_rows
            gone_tokens += len(sequence.token_ids_T)
        num_sequences += 1
        num_rows += sequence.rows.num_rows
        num_tokens += len(sequence.token_ids_T)
    entry = ShardEntry(
        unit_id=place.unit_id,
        unit_index=place.unit_index,
        name=info.name,
        num_sequences=num_sequences,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_bytes=len(data),
        checksum=index_segments.checksum(data),
        num_rejects=0,
        seconds=0.0,
        worker="rebuild-index",
        committed_sec=info.modified_sec,
    )
    unit = DeletedSequences(place.unit_id, place.attempt, tuple(gone), gone_rows, gone_tokens)
    return entry, unit if gone else None


def _choose(known: Known, candidates: list[CommitRecord]) -> tuple[dict[str, CommitRecord], int]:
    """One record per unit and place: known and sound first, then sound, then known without a shard here."""
    dropped = {(one.unit_id, one.attempt) for one in known.dropped}
    order = {key: place for place, key in enumerate(known.records)}
    candidates = sorted(
        candidates, key=lambda record: order.get((record.shard.unit_id, record.attempt), len(order))
    )
    chosen: dict[str, CommitRecord] = {}
    places: dict[int, str] = {}
    num_rivals = 0
    for record in candidates:
        unit_id, unit_index = record.shard.unit_id, record.shard.unit_index
        if unit_id in chosen or unit_index in places:
            num_rivals += 1
            continue
        chosen[unit_id], places[unit_index] = record, unit_id
    for key, record in known.records.items():
        unit_id, unit_index = key[0], record.shard.unit_index
        if key not in dropped and unit_id not in chosen and unit_index not in places:
            chosen[unit_id], places[unit_index] = record, unit_id
    return chosen, num_rivals
