"""Which units of a store are committed: the compacted index and the commit records that came after it.

`index.json` names the index segments. A reader lists the commit records first and reads `index.json`
second, so that a unit which compaction moves in between is found in one place or the other. Where a
unit is in both, the index wins: the record is a late rival's, and garbage.

A unit is un-committed by naming its attempt in `index.json` as dropped. That begins a new round of the
unit: its next record has another name, so nothing that was written for an earlier round can come back.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pyarrow as pa

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import (
    AccessRefusedError,
    CorruptManifestError,
    ObjectNotFoundError,
    StoreChangedError,
)
from logitstore.index import segments as index_segments
from logitstore.index.commits import (
    COMMITS_PREFIX,
    MAX_COMMIT_BYTES,
    CommitRecord,
    check_manifest_hash,
    commit_name,
    decode_commit,
    record_place,
)
from logitstore.index.deletions import DeletedSequences, Deletions, read_tombstone
from logitstore.index.entries import ShardIndex, of_another_plan
from logitstore.index.pointer import INDEX_NAME, IndexPointer, decode_pointer
from logitstore.index.segment_tables import SegmentTables
from logitstore.index.tail_deletions import TailDeletions
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import Reject

MAX_REFRESH_TRIES = 20


class CommittedUnits:
    """The reader's side: a cached view that `refresh` brings up to date with few requests."""

    def __init__(self, objects: Objects, manifest: str, reading: TailDeletions | None = None) -> None:
        """`manifest` is the store's `manifest_hash`; records and indexes of another are refused.

        `reading` is needed for `entries` and `deletions` of a store that has deletions.
        """
        self._objects = objects
        self._reading = reading
        self.segments = SegmentTables(objects, IndexPointer(generation=0, manifest=manifest), {})
        self.pointer_etag: str | None = None
        """None while the store has no `index.json`."""
        self._rounds: Counter[str] = Counter()
        self.compacted = ShardIndex(index_segments.ENTRY_SCHEMA.empty_table())
        self.tail: dict[str, CommitRecord] = {}
        """Records that are not in the index, by unit id."""
        self.late: list[str] = []
        """Names of commit records that count no more: the index has the unit, or it is in a later round."""
        self.unlisted = False
        """Whether the place refused to be listed, so that commit records cannot be seen."""
        self.named_deletions = Deletions()
        """What tombstones say."""
        self._in_tail: dict[str, DeletedSequences | None] = {}
        """By attempt, of shards of the tail that were looked into: deleted sequences without a tombstone."""
        self._all: tuple[ShardIndex, Deletions] | None = None

    @property
    def pointer(self) -> IndexPointer:
        """What `index.json` says; of generation 0 while the store has none."""
        return self.segments.pointer

    def refresh(self) -> None:
        """See every unit committed before this call. Raises CorruptManifestError and its siblings.

        `entries` is the same object after it where nothing changed.
        """
        before = self.tail
        for _ in range(MAX_REFRESH_TRIES):
            listed = self._list_records()
            if self._read_index() and self._read_records(listed):
                if self.tail != before:
                    self._all = None
                return
        raise self._unsteady()

    def _list_records(self) -> list[ObjectInfo]:
        """Commit records that lie there; none where listing is refused and an index stands by itself."""
        try:
            return [] if self.unlisted else self._objects.list_info(COMMITS_PREFIX)
        except AccessRefusedError:
            if not self._objects.exists(INDEX_NAME):
                raise
        self.unlisted = True
        warnings.warn(
            f"{self._objects.uri} may not be listed, so units that were committed after its last compaction "
            "are not seen; a store that is complete and compacted has none",
            StoreWarning,
            stacklevel=2,
        )
        return []

    def refresh_index(self) -> None:
        """See what is in the index, and not the commit records that came after it."""
        for _ in range(MAX_REFRESH_TRIES):
            if self._read_index():
                return
        raise self._unsteady()

    def with_newest_index(self) -> CommittedUnits:
        """Another view, of the index as it is now; what both name is read once."""
        newest = copy.copy(self)
        newest.refresh_index()
        return newest

    @property
    def has_index(self) -> bool:
        """Whether the store had an `index.json` when it was last read."""
        return self.pointer_etag is not None

    def index_names(self) -> set[str]:
        """Objects that the index consists of, `index.json` aside."""
        names = {name for info in self.pointer.segments for name in (info.name, info.rejects_name)}
        return names - {""}

    def find_in_index(self, unit_index: int, unit_id: str) -> tuple[ShardEntry, str] | None:
        """The unit's entry and attempt. Raises StoreChangedError where its place holds another unit."""
        return self.compacted.find(unit_index, unit_id)

    def check_place(self, unit_index: int, unit_id: str) -> None:
        """Raises StoreChangedError if the unit's place is known to hold another unit."""
        self.compacted.find(unit_index, unit_id)
        for record in self.tail.values():
            if record.shard.unit_index == unit_index and record.shard.unit_id != unit_id:
                raise of_another_plan(unit_index, record.shard.unit_id, unit_id)

    def _unsteady(self) -> StoreChangedError:
        return StoreChangedError(
            f"{self._objects.uri}: the index changed {MAX_REFRESH_TRIES} times while it was being read; "
            "try again, and compact less often"
        )

    def _read_index(self) -> bool:
        """Read `index.json` and what segments are new; False if one was compacted away meanwhile."""
        try:
            data, etag = self._objects.get_with_etag(INDEX_NAME)
        except ObjectNotFoundError as error:
            if self.pointer_etag is None:
                return True
            raise StoreChangedError(
                f"{self._objects.uri}: {INDEX_NAME} was there and is gone, which nothing of this software "
                "does; restore the store from a copy, or begin it anew"
            ) from error
        if etag == self.pointer_etag:
            return True
        pointer = decode_pointer(data)
        check_manifest_hash(pointer.manifest, self.pointer.manifest, what=INDEX_NAME)
        try:
            segments = self.segments.of_pointer(pointer)
            deletions = self._load_deletions(pointer)
        except ObjectNotFoundError:
            if self._objects.get_with_etag(INDEX_NAME)[1] != etag:
                return False
            raise
        rounds = Counter(dropped.unit_id for dropped in pointer.dropped)
        before, self._rounds = self._rounds, rounds
        self.segments, self.pointer_etag = segments, etag
        if deletions is not self.named_deletions:
            self.named_deletions, self._in_tail = deletions, {}
        empty = index_segments.ENTRY_SCHEMA.empty_table()
        self.compacted = ShardIndex(pa.concat_tables(segments.all_living() or [empty]))
        moved = self.compacted.having((one.shard.unit_index, unit) for unit, one in self.tail.items())
        self.tail = {
            unit: record
            for unit, record in self.tail.items()
            if rounds[unit] == before[unit] and unit not in moved
        }
        self._all = None
        return True

    def record_name(self, unit_id: str) -> str:
        """The name of the unit's commit record in its present round."""
        return commit_name(unit_id, self._rounds[unit_id])

    def dropped_units(self) -> set[str]:
        """Units that were un-committed at some time."""
        return set(self._rounds)

    def decode_record(self, data: bytes, name: str) -> CommitRecord:
        """An untrusted commit record. Raises CorruptManifestError and its siblings."""
        record = decode_commit(data, what=name)
        check_manifest_hash(record.manifest, self.pointer.manifest, what=name)
        return record

    def entries(self) -> ShardIndex:
        """Entries of all units; their counts leave out what was deleted."""
        return self._view()[0]

    @property
    def deletions(self) -> Deletions:
        """What was deleted: the counts of `entries` leave it out."""
        return self._view()[1]

    def _view(self) -> tuple[ShardIndex, Deletions]:
        if self._all is None:
            deletions = self.named_deletions
            if in_tail := self.deleted_in_tail():
                deletions = Deletions(deletions.tombstones, in_tail)
            tail = index_segments.entries_to_table(self.tail.values())
            tables = [*self.segments.all_living(), tail]
            self._all = ShardIndex(deletions.subtract(pa.concat_tables(tables))), deletions
        return self._all

    def deleted_in_tail(self) -> list[DeletedSequences]:
        """Sequences of deleted records that no tombstone names yet, in shards outside the index."""
        if not self.named_deletions.records:
            return []
        unseen = [record for record in self.tail.values() if record.attempt not in self._in_tail]
        if unseen:
            self._in_tail.update(self.find_deleted(unseen))
        found = (self._in_tail.get(record.attempt) for record in self.tail.values())
        return [one for one in found if one is not None]

    def find_deleted(self, records: list[CommitRecord]) -> dict[str, DeletedSequences | None]:
        """By attempt, in the shards of these records: deleted sequences that no tombstone names."""
        if self._reading is None:
            raise ValueError(
                f"{self._objects.uri} has deletions, and without `reading` its shards' ids cannot be read; "
                "open it as a LogitStore"
            )
        return self._reading.find(records, self.named_deletions)

    def unit_ids(self) -> set[str]:
        """Ids of the committed units."""
        return {*self.compacted.unit_ids(), *self.tail}

    def add(self, record: CommitRecord) -> None:
        """Note a record that this process just committed."""
        self.tail[record.shard.unit_id] = record
        self._all = None

    def rejects(self) -> list[Reject]:
        """Rejects of all units, by segment and then by unit."""
        found = self.segments.rejects()
        for record in sorted(self.tail.values(), key=lambda record: record.shard.unit_index):
            found += record.rejects
        return found

    def _load_deletions(self, pointer: IndexPointer) -> Deletions:
        if pointer.deleted == self.pointer.deleted:
            return self.named_deletions
        return Deletions(read_tombstone(self._objects, info, pointer.manifest) for info in pointer.deleted)

    def _read_records(self, listed: list[ObjectInfo]) -> bool:
        """Read what is new of the listed records; False if one vanished into the index meanwhile."""
        names = {info.name for info in listed}
        units, late = self._sort_listed(listed)
        self.tail = {unit: record for unit, record in self.tail.items() if unit in units}
        late |= names.intersection(self.late)
        unseen = sorted(self.record_name(unit) for unit in units - self.tail.keys())
        unseen = [name for name in unseen if name not in late]
        for name, data in zip(unseen, self._objects.get_many(unseen), strict=True):
            if data is None:
                return False
            try:
                record = self.decode_record(data, name)
            except CorruptManifestError:
                place = record_place(name)
                if place is None or place.unit_id not in self.compacted.unit_ids():
                    raise
                late.add(name)  # its unit is in the index, for example by `rebuild-index`
                continue
            self.tail[record.shard.unit_id] = record
        for unit, record in list(self.tail.items()):
            if self.compacted.find(record.shard.unit_index, unit) is not None:
                late.add(self.record_name(unit))
                del self.tail[unit]
        self.late = sorted(late)
        return True

    def _sort_listed(self, listed: list[ObjectInfo]) -> tuple[set[str], set[str]]:
        """Units with a record of their present round, and names of records of earlier rounds."""
        units: set[str] = set()
        late: set[str] = set()
        for info in listed:
            place = record_place(info.name)
            if place is None:
                continue
            if info.num_bytes > MAX_COMMIT_BYTES:
                raise CorruptManifestError(
                    f"{info.name} has {info.num_bytes} bytes, a commit record at most {MAX_COMMIT_BYTES}; "
                    "it was not written by this software, or is damaged"
                )
            if place.round_number > self._rounds[place.unit_id]:
                raise StoreChangedError(
                    f"{self._objects.uri}: {info.name} is of round {place.round_number} of its unit, "
                    f"{INDEX_NAME} knows {self._rounds[place.unit_id]}, so {INDEX_NAME} is older than the "
                    "store: restore the newest one, or run `penumbra store rebuild-index`"
                )
            if place.round_number == self._rounds[place.unit_id]:
                units.add(place.unit_id)
            else:
                late.add(info.name)
        return units, late
