"""An index from the shards: for a store whose `index.json` or segments are lost, damaged or out of date."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import (
    CorruptManifestError,
    CorruptShardError,
    ObjectNotFoundError,
    StoreChangedError,
    StoreError,
)
from logitstore.index import segments as index_segments
from logitstore.index.commits import (
    COMMITS_PREFIX,
    MAX_COMMIT_BYTES,
    SHARDS_PREFIX,
    CommitRecord,
    ShardPlace,
    check_manifest_hash,
    decode_commit,
    record_place,
    shard_place,
)
from logitstore.index.compaction import write_segment_objects
from logitstore.index.deletions import DELETED_PREFIX, MAX_TOMBSTONE_BYTES, decode_tombstone
from logitstore.index.id_building import IdBuilder
from logitstore.index.pointer import (
    INDEX_NAME,
    INDEX_PREFIX,
    MAX_SEGMENT_BYTES,
    DroppedAttempt,
    IndexPointer,
    TombstoneInfo,
    decode_pointer,
    encode_pointer,
    valid_tombstone_name,
)
from logitstore.manifest.fields import LabelSpec, ShardEntry
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import Reject
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import MAX_SHARD_BYTES

_ENTRIES_NAME = re.compile(r"index/([0-9a-f]{16})\.arrow")
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


@dataclass(slots=True)
class _Known:
    """What is known of a store besides its shards."""

    pointer: IndexPointer | None = None
    etag: str | None = None
    """Of the `index.json` that is to be replaced, readable or not; None where there is none."""
    records: dict[tuple[str, str], CommitRecord] = field(default_factory=dict)
    """By unit id and attempt; what was found first stays."""
    rounds: dict[str, int] = field(default_factory=dict)
    """Of the units with records of a later round than the first."""

    def add(self, records: Iterable[CommitRecord]) -> None:
        for record in records:
            self.records.setdefault((record.shard.unit_id, record.attempt), record)

    @property
    def dropped(self) -> tuple[DroppedAttempt, ...]:
        """What the new index must name: as many attempts of a unit as its records' names say.

        Where the index is lost the attempts are unknown, and made up: what counts is their number.
        """
        dropped = list(self.pointer.dropped) if self.pointer is not None else []
        for unit_id, number in sorted(self.rounds.items()):
            missing = number - sum(one.unit_id == unit_id for one in dropped)
            dropped += [DroppedAttempt(unit_id, secrets.token_hex(8)) for _ in range(missing)]
        return tuple(dropped)


def rebuild_index(
    objects: Objects,
    manifest: str,
    labels: LabelSpec,
    codebooks: CodebookSet | None,
    progress: Progress | None = None,
) -> RebuildResult:
    """Write an index of every unit that has a sound shard here, or that a readable record or segment has.

    Reads every shard. Entries of the present index and of commit records are taken before those of old
    segments, and those before what only the shard tells. Deletes nothing. `manifest` is the manifest's
    hash.

    Raises StoreChangedError if the index is replaced meanwhile, and what reading objects raises.
    """
    known = _gather(objects, manifest)
    sound, num_unreadable = _read_shards(objects, manifest, labels, codebooks, known, progress)
    chosen, num_rivals = _choose(known, sound)
    records = sorted(chosen.values(), key=lambda record: record.shard.unit_index)
    segments = (write_segment_objects(objects, records, secrets.token_hex(8)),) if records else ()
    pointer = IndexPointer(
        generation=known.pointer.generation + 1 if known.pointer is not None else 1,
        manifest=manifest,
        segments=segments,
        dropped=known.dropped,
        deleted=_tombstones(objects, manifest, known.pointer),
    )
    data = encode_pointer(pointer)
    if known.etag is None:
        swapped = objects.put_if_absent(INDEX_NAME, data)
    else:
        swapped = objects.put_if_match(INDEX_NAME, data, known.etag)
    if not swapped and objects.get(INDEX_NAME) != data:
        raise StoreChangedError(
            f"{objects.uri}: {INDEX_NAME} was replaced while it was being rebuilt; stop the job, then repeat"
        )
    for info in segments:
        builder = IdBuilder(objects, labels, lambda: codebooks)
        builder.build(info, index_segments.entries_to_table(records))
    from_records = sum((unit, record.attempt) in known.records for unit, record in chosen.items())
    return RebuildResult(len(records), from_records, len(records) - from_records, num_unreadable, num_rivals)


def _tombstones(objects: Objects, manifest: str, pointer: IndexPointer | None) -> tuple[TombstoneInfo, ...]:
    """All deletions that lie here, named or not: what was taken down once does not come back."""
    named = pointer.deleted if pointer is not None else ()
    found = list(named)
    for name in objects.list(DELETED_PREFIX):
        if not valid_tombstone_name(name) or name in {info.name for info in named}:
            continue
        data = objects.get(name, max_bytes=MAX_TOMBSTONE_BYTES)
        with contextlib.suppress(CorruptManifestError):
            decode_tombstone(data, manifest, what=name)
            found.append(TombstoneInfo(name, len(data), index_segments.checksum(data)))
    return tuple(found)


def _gather(objects: Objects, manifest: str) -> _Known:
    """The present index as far as it can be read, commit records, and segments that nothing names."""
    known = _Known()
    listed = objects.list_info(COMMITS_PREFIX)
    with contextlib.suppress(ObjectNotFoundError):
        data, known.etag = objects.get_with_etag(INDEX_NAME)
        with contextlib.suppress(CorruptManifestError):
            known.pointer = decode_pointer(data)
    if known.pointer is not None:
        check_manifest_hash(known.pointer.manifest, manifest, what=INDEX_NAME)
    segments = objects.list_info(INDEX_PREFIX)
    named = [info.name for info in known.pointer.segments] if known.pointer is not None else []
    for name in named:
        known.add(_segment_records(objects, name, manifest))
    places = {info: place for info in listed if (place := record_place(info.name)) is not None}
    rounds = Counter(one.unit_id for one in known.dropped)
    for place in places.values():
        rounds[place.unit_id] = max(place.round_number, rounds[place.unit_id])
    known.rounds = {unit_id: number for unit_id, number in rounds.items() if number}
    for info in (info for info, place in places.items() if place.round_number == rounds[place.unit_id]):
        known.add(_record(objects, info, manifest))
    for info in sorted(segments, key=lambda info: -info.modified_sec):
        if _ENTRIES_NAME.fullmatch(info.name) and info.name not in named:
            known.add(_segment_records(objects, info.name, manifest))
    return known


def _record(objects: Objects, info: ObjectInfo, manifest: str) -> list[CommitRecord]:
    try:
        record = decode_commit(objects.get(info.name, max_bytes=MAX_COMMIT_BYTES), what=info.name)
        check_manifest_hash(record.manifest, manifest, what=info.name)
    except (CorruptManifestError, ObjectNotFoundError):
        return []
    return [record]


def _segment_records(objects: Objects, name: str, manifest: str) -> list[CommitRecord]:
    """A segment's entries as the records they were, with their rejects where those can be read."""
    table = index_segments.read_unnamed_entries(objects, name, max_bytes=MAX_SEGMENT_BYTES)
    if table is None:
        return []
    rejects: dict[int, list[Reject]] = {}
    match = _ENTRIES_NAME.fullmatch(name)
    assert match is not None
    other = index_segments.read_unnamed_rejects(
        objects, f"{INDEX_PREFIX}{match[1]}-rejects.arrow", max_bytes=MAX_SEGMENT_BYTES
    )
    if other is not None:
        for unit_index, reject in zip(
            other.column("unit_index").to_pylist(), index_segments.table_to_rejects(other), strict=True
        ):
            rejects.setdefault(unit_index, []).append(reject)
    attempts = [attempt.hex() for attempt in table.column("attempt").to_pylist()]
    return [
        _with_rejects(CommitRecord(attempt, manifest, entry), rejects.get(entry.unit_index, []))
        for attempt, entry in zip(attempts, index_segments.table_to_entries(table), strict=True)
    ]


def _with_rejects(record: CommitRecord, rejects: list[Reject]) -> CommitRecord:
    entry = dataclasses.replace(record.shard, num_rejects=len(rejects))
    return dataclasses.replace(record, shard=entry, rejects=tuple(rejects))


def _read_shards(
    objects: Objects,
    manifest: str,
    labels: LabelSpec,
    codebooks: CodebookSet | None,
    known: _Known,
    progress: Progress | None,
) -> tuple[list[tuple[ShardPlace, CommitRecord]], int]:
    """A record for each sound shard whose attempt was not dropped, and how many cannot be read."""
    dropped = {(one.unit_id, one.attempt) for one in known.dropped}
    found: list[tuple[ShardPlace, CommitRecord]] = []
    num_unreadable = 0
    infos = objects.list_info(SHARDS_PREFIX)
    for done, info in enumerate(infos):
        if progress:
            progress("shards", done, len(infos))
        place = shard_place(info.name)
        if place is None or (place.unit_id, place.attempt) in dropped:
            continue
        try:
            entry = entry_of_shard(objects, info, place, labels, codebooks)
        except OSError:
            raise
        except StoreError:
            num_unreadable += 1
            continue
        standing = known.records.get((place.unit_id, place.attempt))
        if standing is None or standing.shard.checksum != entry.checksum:
            standing = CommitRecord(place.attempt, manifest, entry)
        found.append((place, standing))
    return found, num_unreadable


def entry_of_shard(
    objects: Objects, info: ObjectInfo, place: ShardPlace, labels: LabelSpec, codebooks: CodebookSet | None
) -> ShardEntry:
    """The entry that a shard's commit record would hold, but for rejects and times. Reads all of it.

    Raises CorruptShardError for what is no shard of this store.
    """
    if info.num_bytes > MAX_SHARD_BYTES:
        raise CorruptShardError(f"{info.name} has {info.num_bytes} bytes, a shard at most {MAX_SHARD_BYTES}")
    data = objects.get(info.name, max_bytes=info.num_bytes)
    num_sequences = num_rows = num_tokens = 0
    for sequence in ShardReader(io.BytesIO(data), labels, codebooks).iter_sequences():
        num_sequences += 1
        num_rows += sequence.rows.num_rows
        num_tokens += len(sequence.token_ids_T)
    return ShardEntry(
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


def _choose(
    known: _Known, sound: list[tuple[ShardPlace, CommitRecord]]
) -> tuple[dict[str, CommitRecord], int]:
    """One record per unit and place: known and sound first, then sound, then known without a shard here."""
    dropped = {(one.unit_id, one.attempt) for one in known.dropped}
    order = {key: place for place, key in enumerate(known.records)}
    candidates = [record for _, record in sound]
    candidates.sort(key=lambda record: order.get((record.shard.unit_id, record.attempt), len(order)))
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
