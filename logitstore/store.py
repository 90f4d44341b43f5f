"""A logit store: a manifest, shards, and commit records that make the shards visible.

Any number of processes may write to and read from one store at once, on a local disk or on S3. Of the
writers of one unit exactly one wins; a reader sees whole shards or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow as pa

from logitstore.codebook_objects import StoreCodebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import (
    CorruptShardError,
    InvalidLabelsError,
    ObjectNotFoundError,
    StoreChangedError,
    StoreExistsError,
    StoreNotFoundError,
    UnsupportedInputError,
)
from logitstore.index.absence import (
    lost_units,
    refuse_lost_index,
    refuse_lost_manifest,
    unnamed_shards,
)
from logitstore.index.changes.committing import commit
from logitstore.index.changes.compaction import CompactionResult, compact, fence_compactors
from logitstore.index.changes.rebuild import RebuildResult, rebuild_index
from logitstore.index.changes.uncommit import uncommit
from logitstore.index.commits import (
    SHARDS_PREFIX,
    CommitRecord,
    commit_name,
    shard_name,
    shard_place,
)
from logitstore.index.committed import CommittedUnits
from logitstore.index.deletions import DeletedRecords, Deletions
from logitstore.index.entries import ShardIndex
from logitstore.index.id_building import IdBuilder
from logitstore.index.pointer import INDEX_NAME, IndexPointer, SegmentInfo, TombstoneInfo, encode_pointer
from logitstore.lookup import KeptIds, Lookup
from logitstore.manifest.fields import RECORD_PARTS, Manifest, ShardEntry
from logitstore.manifest.reading import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    decode_manifest,
    encode_manifest,
    first_difference,
    identity,
    manifest_hash,
)
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import MAX_BLOCK_ENTRIES, MAX_SHARD_BYTES
from logitstore.shard.writer import ShardStats, write_shard

MAX_WHOLE_BYTES = 256 * 2**20
MAX_ROUNDS_PER_COMMIT = 10
NO_SHARD = ShardStats(num_sequences=0, num_rows=0, num_tokens=0, num_bytes=0, checksum="")


class LogitStore:
    """Made by `create` or `open`. Picklable: a copy opens the store anew in its process."""

    def __init__(self, objects: Objects, manifest: Manifest, *, refresh: bool = True) -> None:
        self.objects = objects
        self._manifest = manifest
        self._codebooks = StoreCodebooks(objects)
        self._manifest_hash = manifest_hash(manifest)
        self.max_block_entries = MAX_BLOCK_ENTRIES
        """Rows times K of a block that this process decodes at once; the format's limit unless lowered."""
        self._lookup: tuple[ShardIndex, Lookup] | None = None
        self._kept_ids = KeptIds()
        self._units = CommittedUnits(objects, self._manifest_hash)
        if refresh:
            self.refresh()

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike[str],
        manifest: Manifest,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> LogitStore:
        """A new store, or the one already there if it has the same identity: a job resumed.

        Raises StoreExistsError if a store of another teacher, input or label shape lies there.
        """
        objects = Objects(uri, storage_options)
        if not objects.exists(MANIFEST_NAME):
            refuse_lost_manifest(objects)
            if objects.put_if_absent(MANIFEST_NAME, encode_manifest(manifest)):
                return cls._begin(objects, manifest)
        existing = decode_manifest(objects.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES))
        if identity(existing) != identity(manifest):
            raise StoreExistsError(
                f"{objects.uri} already holds another store: {first_difference(existing, manifest)}; "
                "write to another place, or give the settings the store was made with"
            )
        return cls._begin(objects, existing)

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        writing: bool = False,
    ) -> LogitStore:
        """An existing store. `writing` opens one that has shards and no committed unit yet, as a job may.

        Raises StoreNotFoundError, UnsupportedFormatError, CorruptManifestError, and IndexLostError for
        labels that nothing names.
        """
        objects = Objects(uri, storage_options)
        store = cls(objects, _read_manifest(objects))
        refuse_lost_index(objects, store._units, writing=writing)
        return store

    @classmethod
    def rebuild(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> tuple[LogitStore, RebuildResult]:
        """Write an index from the shards and what can be read of the old one, and open the store.

        Reads every shard and deletes nothing. Raises what `open` does but for the index, StoreChangedError
        if another process replaces the index meanwhile.
        """
        objects = Objects(uri, storage_options)
        store = cls(objects, _read_manifest(objects), refresh=False)
        store._codebooks.restore(objects.list(SHARDS_PREFIX))
        labels = store._manifest.labels
        result = rebuild_index(objects, store._manifest_hash, labels, store.codebooks(), progress)
        store.refresh()
        return store, result

    @classmethod
    def _begin(cls, objects: Objects, manifest: Manifest) -> LogitStore:
        """The store, with an empty `index.json` unless it has one, so that its absence means its loss."""
        store = cls(objects, manifest)
        refuse_lost_index(objects, store._units, writing=True)
        if not store._units.has_index:
            objects.put_if_absent(INDEX_NAME, encode_pointer(IndexPointer(0, store._manifest_hash)))
            store.refresh()
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return (LogitStore, (self.objects, self._manifest))

    def __repr__(self) -> str:
        return f"LogitStore({self.uri!r}, {len(self.shards())} units)"

    @property
    def uri(self) -> str:
        return self.objects.uri

    @property
    def manifest(self) -> Manifest:
        """The head, with the hash of the codebook set if the store has one by now."""
        codebooks = self.codebooks()
        return dataclasses.replace(self._manifest, codebooks=codebooks.hash if codebooks else None)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over the identity and the committed shards; compaction leaves it alone."""
        hasher = hashlib.blake2b(identity(self._manifest), digest_size=16)
        self.shards().digest_into(hasher)
        return hasher.hexdigest()

    def need_rows(self, what: str) -> None:
        """Raises UnsupportedInputError where the store holds texts alone, which `what` cannot do without."""
        if self._manifest.labels.support == "none":
            raise UnsupportedInputError(
                f"{self.uri} holds texts alone and no label rows, which {what} needs; train on it with "
                "loss.alpha = 0, or write its texts: penumbra store export --to messages or prompt-completion"
            )

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
        """What was taken down, as of the last `refresh`."""
        return self._units.deletions

    @property
    def deleted_records(self) -> DeletedRecords:
        """Which records were taken down, as of the last `refresh` or commit."""
        return DeletedRecords(self._units.deletions.records, RECORD_PARTS in self._manifest.features)

    def deleted_places(self, entry: ShardEntry) -> np.ndarray:
        """int64, ascending: places within the entry's shard of the sequences that are deleted."""
        place = shard_place(entry.name)
        return self._units.deletions.places(place.attempt if place is not None else "")

    def index_records(self) -> list[CommitRecord]:
        """All that the index has, as commit records; call `compact` before. Deleted sequences are counted."""
        return self._units.records()

    def index_pointer(self) -> tuple[IndexPointer, str]:
        """`index.json` as last read, and its tag for `replace_index`."""
        assert self._units.pointer_etag is not None, "a store begins with an index.json"
        return self._units.pointer, self._units.pointer_etag

    def deletion_infos(self) -> tuple[TombstoneInfo, ...]:
        """The tombstones that `index.json` names."""
        return self._units.pointer.deleted

    def record_names(self) -> list[str]:
        """Commit records of units that are not in the index yet."""
        return [self._units.record_name(unit_id) for unit_id in self._units.tail]

    def replace_index(self, pointer: IndexPointer, etag: str) -> bool:
        """Publish another `index.json` if it is still what was read; the store then shows it."""
        data = encode_pointer(pointer)
        swapped = self.objects.put_if_match(INDEX_NAME, data, etag) or self.objects.get(INDEX_NAME) == data
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
        dropped = uncommit(self.objects, self._manifest_hash, set(shard_names), self.id_builder())
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
        result = compact(self.objects, self._manifest_hash, self.id_builder())
        self.refresh()
        return result

    def id_builder(self) -> IdBuilder:
        """What makes the id index of a segment."""
        return IdBuilder(self.objects, self._manifest.labels, self._codebooks.newest)

    def index_segments(self) -> list[tuple[SegmentInfo, pa.Table]]:
        """The segments of the index, with their entries as they lie there, dropped attempts included."""
        return [(info, self._units.raw_table(info.name)) for info in self._units.pointer.segments]

    def newest_index_segments(self) -> list[tuple[SegmentInfo, pa.Table]]:
        """As `index_segments`, of the index as it is now; what the store shows stays as it is."""
        units = self._units.with_newest_index()
        return [(info, units.raw_table(info.name)) for info in units.pointer.segments]

    def dropped_attempts(self) -> set[str]:
        """Attempts in segments that count no more."""
        return {one.attempt for one in self._units.pointer.dropped}

    def commit_unit(
        self,
        unit_id: str,
        unit_index: int,
        sequences: Sequence[LabeledSequence],
        rejects: Sequence[Reject] = (),
        *,
        seconds: float,
        worker: str,
    ) -> tuple[ShardEntry, bool]:
        """Write a unit's shard and make it visible, unless another writer was first.

        Returns the entry that counts and whether it is this call's. Raises InvalidLabelsError for
        labels that break the format, StoreChangedError for a unit whose place holds another, of another
        plan, ObjectStoreError if the outcome is unknown: then call again.
        """
        commit_name(unit_id)  # both refuse before anything is written
        self._units.check_place(unit_index, unit_id)
        for _ in range(MAX_ROUNDS_PER_COMMIT):
            self._codebooks.look_again()
            deleted = self.deleted_records
            kept = [one for one in sequences if one.record_id not in deleted]
            record = self.write_attempt(unit_id, unit_index, kept, rejects, seconds, worker)
            outcome = commit(self.objects, self._units, record)
            if outcome is None:
                continue
            if not self._shows_deleted(outcome[0], sequences):
                return outcome
            self.uncommit([outcome[0].name])
        raise StoreChangedError(
            f"{self.uri}: unit {unit_id} was un-committed {MAX_ROUNDS_PER_COMMIT} times while it was being "
            "committed; un-commit units while no job labels them"
        )

    def _shows_deleted(self, entry: ShardEntry, sequences: Sequence[LabeledSequence]) -> bool:
        """Whether the shard that counts for a unit of these sequences hands out a deleted one.

        The index was read after the unit's record was put. A deletion that was not in it yet looks once more
        after it is, and so finds the record: one of the two sees the other.
        """
        deleted = self.deleted_records
        if not entry.name or not any(one.record_id in deleted for one in sequences):
            return False
        try:
            with self.open_shard(entry) as reader:
                blocks = map(reader.plain_columns, range(reader.num_blocks))
                return any(name in deleted for plain in blocks for name in plain.record_id)
        except (ObjectNotFoundError, CorruptShardError):
            return False  # another writer's, which hands out nothing; `verify` tells

    def write_attempt(
        self,
        unit_id: str,
        unit_index: int,
        sequences: Sequence[LabeledSequence],
        rejects: Sequence[Reject],
        seconds: float,
        worker: str,
    ) -> CommitRecord:
        """Put a shard under a name of its own; the record that would commit it, which counts for nothing
        yet."""
        attempt = secrets.token_hex(8)
        name, stats = "", NO_SHARD
        if sequences:
            name = shard_name(unit_index, unit_id, attempt)
            buffer = io.BytesIO()
            stats = write_shard(buffer, sequences, self._manifest.labels, self.codebooks())
            if stats.num_bytes > MAX_SHARD_BYTES:
                raise InvalidLabelsError(
                    f"unit {unit_id} makes a shard of {stats.num_bytes:,} bytes, and a shard has at most "
                    f"{MAX_SHARD_BYTES:,}; use smaller units"
                )
            self.objects.put(name, buffer.getvalue())
        entry = ShardEntry(
            unit_id=unit_id,
            unit_index=unit_index,
            name=name,
            num_sequences=stats.num_sequences,
            num_rows=stats.num_rows,
            num_tokens=stats.num_tokens,
            num_bytes=stats.num_bytes,
            checksum=stats.checksum,
            num_rejects=len(rejects),
            seconds=seconds,
            worker=worker,
            committed_sec=time.time(),
        )
        return CommitRecord(attempt, self._manifest_hash, entry, tuple(rejects))

    def open_shard(self, entry: ShardEntry, *, whole: bool = False, deleted: bool = False) -> ShardReader:
        """A reader of one shard, fetching what it needs, or the whole object in one request.

        Read whole when all of a shard is wanted from S3; the file's own checksum is then the caller's
        to compare (`verify` does), since blocks carry theirs. Deleted sequences are skipped, unless
        `deleted`.
        """
        if not entry.name:
            raise ValueError(f"unit {entry.unit_id} has no shard: every record of it was rejected")
        # The reader asks for whole ranges itself; reading ahead would only fetch what it skips.
        file = (
            self.open_whole(entry)
            if whole
            else self.objects.open(entry.name, num_bytes=entry.num_bytes, buffer_bytes=512)
        )
        return self.reader_of(file, entry, deleted=deleted)

    def reader_of(self, file: BinaryIO, entry: ShardEntry, *, deleted: bool = False) -> ShardReader:
        """A reader of the file of an entry's shard that the caller has opened."""
        return ShardReader(
            file,
            self._manifest.labels,
            self.codebooks(),
            max_block_entries=self.max_block_entries,
            deleted=None if deleted else self.deleted_places(entry),
        )

    def open_whole(self, entry: ShardEntry) -> BinaryIO:
        """All of a shard: in memory, fetched by one request, up to MAX_WHOLE_BYTES; else read in parts.

        Raises CorruptShardError for an entry beyond the size that a shard may have.
        """
        if entry.num_bytes > MAX_SHARD_BYTES:
            raise CorruptShardError(
                f"{entry.name} has {entry.num_bytes:,} bytes, and a shard at most {MAX_SHARD_BYTES:,}; it "
                "was not written by this software, or is damaged"
            )
        if entry.num_bytes > MAX_WHOLE_BYTES:
            buffer_bytes = MAX_WHOLE_BYTES // 16
            return self.objects.open(entry.name, num_bytes=entry.num_bytes, buffer_bytes=buffer_bytes)
        return io.BytesIO(self.objects.get(entry.name, max_bytes=entry.num_bytes))

    def iter_sequences(self, top_k: int | None = None) -> Iterator[LabeledSequence]:
        """All sequences by unit, one shard in memory at a time; `top_k` reads only that many entries."""
        for entry in self.shards():
            if entry.name:
                with self.open_shard(entry) as reader:
                    yield from reader.iter_sequences(top_k=top_k)

    def __len__(self) -> int:
        """Sequences of the store."""
        return int(self.shards().column("num_sequences").sum())

    def __bool__(self) -> bool:
        return True  # a store without sequences is a store

    def __iter__(self) -> Iterator[LabeledSequence]:
        return self.iter_sequences()

    @overload
    def __getitem__(self, key: int | str | tuple[str, int]) -> LabeledSequence: ...
    @overload
    def __getitem__(self, key: slice | list[str]) -> list[LabeledSequence]: ...
    def __getitem__(
        self, key: int | str | tuple[str, int] | slice | list[str]
    ) -> LabeledSequence | list[LabeledSequence]:
        """`store[7]`, `store[-1]`, `store[10:20]`: by number in the store's order. `store["id"]`,
        `store["id", 3]`: a record's sequence, or one sample of it. `store[["a", "b"]]`: one of each record.

        The first id that is asked for reads the ids of all shards. Raises IndexError and KeyError.
        """
        lookup = self.lookup()
        if isinstance(key, slice):
            return lookup.read(range(*key.indices(len(lookup))))
        if isinstance(key, int):
            return lookup.read([key + len(lookup) if key < 0 else key])[0]
        if isinstance(key, str):
            return lookup.one(key)
        if isinstance(key, tuple):
            return lookup.one(key[0], key[1])
        return lookup.one_of_each(key)

    def find(self, record_ids: Iterable[str]) -> dict[str, list[LabeledSequence]]:
        """All samples of each of these records; an empty list for one that the store does not have."""
        return self.lookup().find(record_ids)

    def lookup(self) -> Lookup:
        """Sequences by number and by id, as of the last `refresh`; kept until the store changes."""
        shards = self.shards()
        if self._lookup is None or self._lookup[0] is not shards:
            self._lookup = (shards, Lookup(self, self._kept_ids))
        return self._lookup[1]

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


def _read_manifest(objects: Objects) -> Manifest:
    try:
        data = objects.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    except ObjectNotFoundError as error:
        refuse_lost_manifest(objects)
        raise StoreNotFoundError(
            f"no store lies at {objects.uri}: {MANIFEST_NAME} is not there; check the path, or label "
            "something into it first"
        ) from error
    return decode_manifest(data)
