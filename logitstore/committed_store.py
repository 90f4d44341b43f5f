"""What the index of a store says, and what changes it as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from logitstore.codebook_objects import StoreCodebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.index.absence import lost_units, unnamed_shards
from logitstore.index.changes.compaction import CompactionResult, compact, fence_compactors
from logitstore.index.changes.uncommit import uncommit
from logitstore.index.commits import CommitRecord, shard_place
from logitstore.index.committed import CommittedUnits
from logitstore.index.deletions import DeletedRecords, Deletions
from logitstore.index.entries import ShardIndex
from logitstore.index.ids.building import IdBuilder
from logitstore.index.pointer import IndexPointer, SegmentInfo, TombstoneInfo, swap_pointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.manifest.fields import RECORD_PARTS, Manifest, ShardEntry
from logitstore.manifest.reading import manifest_hash
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import Reject


class CommittedStore:
    """The committed units of a store, as of the last `refresh` or commit, and its codebook set."""

    def __init__(self, objects: Objects, manifest: Manifest, *, refresh: bool = True) -> None:
        self.objects = objects
        self._manifest = manifest
        self._codebooks = StoreCodebooks(objects)
        self._manifest_hash = manifest_hash(manifest)
        self._reading = TailDeletions(
            objects, manifest.labels, self._codebooks.newest, RECORD_PARTS in manifest.features
        )
        self._units = CommittedUnits(objects, self._manifest_hash, self._reading)
        if refresh:
            self.refresh()

    @property
    def uri(self) -> str:
        return self.objects.uri

    def refresh(self) -> None:
        """See every unit committed before this call."""
        self._codebooks.look_again()
        self._units.refresh()

    def shards(self) -> ShardIndex:
        """Entries of the committed units by `unit_index`; a unit without sequences has no shard name.

        Deleted sequences are not counted, though their bytes are until `compact --purge`.
        """
        return self._units.entries()

    @property
    def deletions(self) -> Deletions:
        """What was taken down, as of the last `refresh` or commit."""
        return self._units.deletions

    @property
    def deleted_records(self) -> DeletedRecords:
        """Which records were taken down, as of the last `refresh` or commit."""
        return DeletedRecords(self._units.named_deletions.records, self._reading.has_parts)

    def deleted_places(self, entry: ShardEntry) -> np.ndarray:
        """int64, ascending: places within the entry's shard of the sequences that are deleted."""
        place = shard_place(entry.name)
        return self._units.deletions.places(place.attempt if place is not None else "")

    def index_records(self) -> list[CommitRecord]:
        """All that the index has, as commit records; call `compact` before. Deleted sequences are counted."""
        return self._units.segments.records()

    def index_pointer(self) -> tuple[IndexPointer, str | None]:
        """`index.json` as last read, and its tag for `replace_index`; an empty one and None where there is
        none, as in a store whose `create` was cut off."""
        return self._units.pointer, self._units.pointer_etag

    def deletion_infos(self) -> tuple[TombstoneInfo, ...]:
        """The tombstones that `index.json` names."""
        return self._units.pointer.deleted

    def record_names(self) -> list[str]:
        """Commit records of units that are not in the index yet."""
        return [self._units.record_name(unit_id) for unit_id in self._units.tail]

    def replace_index(self, pointer: IndexPointer, etag: str | None) -> bool:
        """Publish another `index.json` if it is still what was read; the store then shows it."""
        swapped = swap_pointer(self.objects, etag, pointer)
        self.refresh()
        return swapped

    def committed_units(self) -> set[str]:
        return set(self.shards().unit_ids())

    def rejects(self) -> list[Reject]:
        """Rejected records of the committed units. (The labeler keeps those of its planning itself.)"""
        return self._units.rejects()

    def late_records(self) -> list[str]:
        """Names of commit records that lost to the index: garbage that compaction removes."""
        return list(self._units.late)

    def unnamed_shards(self) -> list[ObjectInfo]:
        """Shards of units that are not committed; lists all shards."""
        return unnamed_shards(self.objects, self._units)

    def lost_units(self) -> set[str]:
        """Units that only segments which `index.json` does not name have: it was lost, or is an old one."""
        return lost_units(self.objects, self._units)

    def uncommit(self, shard_names: Iterable[str]) -> list[str]:
        """Un-commit the units of these shards, so that they can be labeled again; returns their ids.

        A unit that has another shard by now is left alone. Raises StoreChangedError if other processes keep
        replacing the index.
        """
        names = set(shard_names)
        dropped = uncommit(self.objects, self._manifest_hash, names, self.id_builder(), self._reading)
        self.refresh()
        return dropped

    def fence_compactors(self) -> None:
        """Replace `index.json` by itself with a higher generation: compactors that read it before must fail.

        Raises StoreChangedError if other processes keep replacing it.
        """
        fence_compactors(self.objects, self._manifest_hash)
        self.refresh()

    def index_names(self) -> set[str]:
        """Objects that the index consists of, `index.json` aside."""
        return self._units.index_names()

    def compact(self) -> CompactionResult:
        """Move commit records into the index, so that opening stays cheap. Safe beside writers."""
        result = compact(self.objects, self._manifest_hash, self.id_builder(), self._reading)
        self.refresh()
        return result

    def id_builder(self) -> IdBuilder:
        """What makes the id index of a segment."""
        return IdBuilder(self.objects, self._manifest.labels, self._codebooks.newest)

    def index_segments(self) -> list[tuple[SegmentInfo, pa.Table]]:
        """The segments of the index, with their entries as they lie there, dropped attempts included."""
        return [(info, self._units.segments.raw(info.name)) for info in self._units.pointer.segments]

    def newest_index_segments(self) -> list[tuple[SegmentInfo, pa.Table]]:
        """As `index_segments`, of the index as it is now; what the store shows stays as it is."""
        units = self._units.with_newest_index()
        return [(info, units.segments.raw(info.name)) for info in units.pointer.segments]

    def dropped_attempts(self) -> set[str]:
        """Attempts in segments that count no more."""
        return {one.attempt for one in self._units.pointer.dropped}

    def codebooks(self) -> CodebookSet | None:
        """The set that new shards are coded with; None until `set_codebooks`, anyone's, gave one.

        Looked for once, and again after `refresh` and before every commit until there is one.
        """
        return self._codebooks.current()

    def set_codebooks(self, codebooks: CodebookSet) -> CodebookSet:
        """Give the store its codebook set; the first one wins and is returned.

        Raises CorruptManifestError where shards name a set and `codebooks/current.json` is gone.
        """
        shards = self.shards() if self.codebooks() is None else []
        newest = max(shards, key=lambda entry: (bool(entry.name), entry.committed_sec), default=None)
        return self._codebooks.give(codebooks, [newest.name] if newest is not None and newest.name else [])
