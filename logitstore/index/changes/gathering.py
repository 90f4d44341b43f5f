"""What is known of a store besides its shards: its index as far as it can be read, its commit records, and
segments that nothing names."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from logitstore.errors import CorruptManifestError, ObjectNotFoundError
from logitstore.index import segments as index_segments
from logitstore.index.commits import (
    COMMITS_PREFIX,
    MAX_COMMIT_BYTES,
    CommitRecord,
    check_manifest_hash,
    decode_commit,
    record_place,
)
from logitstore.index.pointer import (
    INDEX_NAME,
    INDEX_PREFIX,
    MAX_SEGMENT_BYTES,
    DroppedAttempt,
    IndexPointer,
    decode_pointer,
)
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import Reject


@dataclass(slots=True)
class Known:
    """What is known of a store besides its shards."""

    pointer: IndexPointer | None = None
    etag: str | None = None
    """The tag of the `index.json` that is to be replaced, readable or not; None where there is none."""
    records: dict[tuple[str, str], CommitRecord] = field(default_factory=dict)
    """By unit id and attempt; what was found first stays."""
    rounds: dict[str, int] = field(default_factory=dict)
    """The round of each unit that has records of a later round than the first."""
    unread: list[str] = field(default_factory=list)
    """Why what could not be read was left out."""

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


def gather(objects: Objects, manifest: str) -> Known:
    """The present index as far as it can be read, commit records, and segments that nothing names."""
    known = Known()
    listed = objects.list_info(COMMITS_PREFIX)
    with contextlib.suppress(ObjectNotFoundError):
        data, known.etag = objects.get_with_etag(INDEX_NAME)
        try:
            known.pointer = decode_pointer(data)
        except CorruptManifestError as error:
            known.unread.append(str(error))
    if known.pointer is not None:
        check_manifest_hash(known.pointer.manifest, manifest, what=INDEX_NAME)
    segments = objects.list_info(INDEX_PREFIX)
    named = (
        {info.name: info.num_bytes for info in known.pointer.segments} if known.pointer is not None else {}
    )
    for name, num_bytes in named.items():
        known.add(_segment_records(objects, name, manifest, known.unread, num_bytes))
    places = {info: place for info in listed if (place := record_place(info.name)) is not None}
    rounds = Counter(one.unit_id for one in known.dropped)
    for place in places.values():
        rounds[place.unit_id] = max(place.round_number, rounds[place.unit_id])
    known.rounds = {unit_id: number for unit_id, number in rounds.items() if number}
    for info in (info for info, place in places.items() if place.round_number == rounds[place.unit_id]):
        known.add(_record(objects, info, manifest, known.unread))
    for info in sorted(segments, key=lambda info: -info.modified_sec):
        if index_segments.is_entries_name(info.name) and info.name not in named:
            known.add(_segment_records(objects, info.name, manifest, known.unread, MAX_SEGMENT_BYTES))
    return known


def _record(objects: Objects, info: ObjectInfo, manifest: str, unread: list[str]) -> list[CommitRecord]:
    try:
        record = decode_commit(objects.get(info.name, max_bytes=MAX_COMMIT_BYTES), what=info.name)
        check_manifest_hash(record.manifest, manifest, what=info.name)
    except (CorruptManifestError, ObjectNotFoundError) as error:
        unread.append(str(error))
        return []
    return [record]


def _segment_records(
    objects: Objects, name: str, manifest: str, unread: list[str], max_bytes: int
) -> list[CommitRecord]:
    """A segment's entries as the records they were, with their rejects where those can be read."""
    try:
        data = pa.py_buffer(objects.get(name, max_bytes=max_bytes))
        table = index_segments.read_entries(data, what=name, num_entries=None)
    except (CorruptManifestError, ObjectNotFoundError) as error:
        unread.append(str(error))
        return []
    rejects: dict[int, list[Reject]] = {}
    if np.any(table.column("num_rejects").to_numpy()):
        rejects = _segment_rejects(objects, name.removesuffix(".arrow") + "-rejects.arrow", unread)
    attempts = [attempt.hex() for attempt in table.column("attempt").to_pylist()]
    return [
        _with_rejects(CommitRecord(attempt, manifest, entry), rejects.get(entry.unit_index, []))
        for attempt, entry in zip(attempts, index_segments.table_to_entries(table), strict=True)
    ]


def _segment_rejects(objects: Objects, name: str, unread: list[str]) -> dict[int, list[Reject]]:
    try:
        data = pa.py_buffer(objects.get(name, max_bytes=MAX_SEGMENT_BYTES))
        table = index_segments.read_rejects(data, what=name, num_rejects=None)
    except (CorruptManifestError, ObjectNotFoundError) as error:
        unread.append(str(error))
        return {}
    rejects: dict[int, list[Reject]] = {}
    numbers = table.column("unit_index").to_pylist()
    for unit_index, reject in zip(numbers, index_segments.table_to_rejects(table), strict=True):
        rejects.setdefault(unit_index, []).append(reject)
    return rejects


def _with_rejects(record: CommitRecord, rejects: list[Reject]) -> CommitRecord:
    entry = dataclasses.replace(record.shard, num_rejects=len(rejects))
    return dataclasses.replace(record, shard=entry, rejects=tuple(rejects))
