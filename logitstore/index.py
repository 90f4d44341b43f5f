"""Which units of a store are committed: the compacted index and the commit records that came after it.

`index.json` names the index segments. A reader lists the commit records first and reads `index.json`
second, so that a unit which compaction moves in between is found in one place or the other. Where a
unit is in both, the index wins: the record is a late rival's, and garbage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

from logitstore import index_segments, strict_json
from logitstore.commits import (
    COMMITS_PREFIX,
    CommitRecord,
    check_manifest_hash,
    commit_name,
    decode_commit,
    unit_id_of,
)
from logitstore.errors import CorruptManifestError, ObjectNotFoundError, StoreChangedError
from logitstore.manifest import FORMAT_VERSION, ShardEntry
from logitstore.manifest_io import check_version
from logitstore.objects import Objects
from logitstore.records import Reject

INDEX_NAME = "index.json"
INDEX_PREFIX = "index/"
MAX_INDEX_BYTES = 4 * 2**20
MAX_SEGMENT_BYTES = 4 * 2**30
MAX_SEGMENT_ENTRIES = 2**24
MAX_REFRESH_TRIES = 20
_ITERATION_BATCH = 1024
_DIGEST_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One index segment, as `index.json` names it."""

    name: str
    num_entries: int
    num_bytes: int
    checksum: str
    rejects_name: str
    """"" where no unit of the segment had rejects; then the other two are 0 and "" as well."""
    num_rejects: int
    rejects_bytes: int
    rejects_checksum: str


@dataclass(frozen=True, slots=True)
class IndexPointer:
    """`index.json`: replaced by compare-and-swap, so it always names one consistent set of segments."""

    generation: int
    manifest: str
    """`manifest_hash` of the store's manifest."""
    segments: tuple[SegmentInfo, ...] = ()
    format_version: int = FORMAT_VERSION


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
            raise CorruptManifestError(
                f"the store lists unit index {self._unit_index[repeated[0]]} twice; each unit must have one "
                "entry: run `verify`"
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

    def unit_ids(self) -> list[str]:
        starts = range(0, len(self), _DIGEST_BATCH)
        parts = (self._rows(self._order[start : start + _DIGEST_BATCH], ["unit_id"]) for start in starts)
        return [unit_id for part in parts for unit_id in part.column("unit_id").to_pylist()]

    def find(self, unit_index: int, unit_id: str) -> tuple[ShardEntry, str] | None:
        """Entry and attempt of a unit. Raises StoreChangedError if its place holds another unit."""
        position = int(np.searchsorted(self._unit_index, unit_index))
        if position == len(self) or self._unit_index[position] != unit_index:
            return None
        entry = self[position]
        if entry.unit_id != unit_id:
            raise StoreChangedError(
                f"unit index {unit_index} is {entry.unit_id} in the store and {unit_id} in the plan; "
                "the plan must be the one the store was started with"
            )
        attempt = self._rows(self._order[[position]]).column("attempt")[0].as_py().hex()
        return entry, attempt

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


class CommittedUnits:
    """The reader's side: a cached view that `refresh` brings up to date with few requests."""

    def __init__(self, objects: Objects, manifest: str) -> None:
        """`manifest` is the store's `manifest_hash`; records and indexes of another are refused."""
        self._objects = objects
        self.pointer = IndexPointer(generation=0, manifest=manifest)
        self.pointer_etag: str | None = None
        """None while the store has no `index.json`."""
        self._segments: dict[str, pa.Table] = {}
        self.compacted = ShardIndex(index_segments.ENTRY_SCHEMA.empty_table())
        self.tail: dict[str, CommitRecord] = {}
        """Records that are not in the index, by unit id."""
        self.late: list[str] = []
        """Names of commit records whose units the index already has."""
        self._all: ShardIndex | None = None

    def refresh(self) -> None:
        """See every unit committed before this call. Raises CorruptManifestError and its siblings."""
        for _ in range(MAX_REFRESH_TRIES):
            names = self._objects.list(COMMITS_PREFIX)
            if self.refresh_index() and self._read_records(names):
                self._all = None
                return
        raise StoreChangedError(
            f"{self._objects.uri}: the index changed {MAX_REFRESH_TRIES} times while it was being read; "
            "try again, and compact less often"
        )

    def refresh_index(self) -> bool:
        """Read `index.json` and what segments are new; False if one was compacted away meanwhile."""
        try:
            data, etag = self._objects.get_with_etag(INDEX_NAME)
        except ObjectNotFoundError:
            return self.pointer_etag is None
        if etag == self.pointer_etag:
            return True
        pointer = decode_pointer(data)
        check_manifest_hash(pointer.manifest, self.pointer.manifest, what=INDEX_NAME)
        try:
            segments = {
                info.name: self._segments[info.name] if info.name in self._segments else self._load(info)
                for info in pointer.segments
            }
        except ObjectNotFoundError:
            if self._objects.get_with_etag(INDEX_NAME)[1] != etag:
                return False
            raise
        self._segments, self.pointer, self.pointer_etag = segments, pointer, etag
        tables = list(segments.values()) or [index_segments.ENTRY_SCHEMA.empty_table()]
        self.compacted = ShardIndex(pa.concat_tables(tables))
        self._all = None
        return True

    def decode_record(self, data: bytes, name: str) -> CommitRecord:
        """An untrusted commit record. Raises CorruptManifestError and its siblings."""
        record = decode_commit(data, what=name)
        check_manifest_hash(record.manifest, self.pointer.manifest, what=name)
        return record

    def segment_table(self, name: str) -> pa.Table:
        return self._segments[name]

    def entries(self) -> ShardIndex:
        if self._all is None:
            tail = index_segments.entries_to_table(self.tail.values())
            segments = list(self._segments.values())
            self._all = ShardIndex(pa.concat_tables([*segments, tail]))
        return self._all

    def add(self, record: CommitRecord) -> None:
        """Note a record that this process just committed."""
        self.tail[record.shard.unit_id] = record
        self._all = None

    def rejects(self) -> list[Reject]:
        """Rejects of all units, by segment and then by unit."""
        found: list[Reject] = []
        for info in self.pointer.segments:
            if info.rejects_name:
                found += index_segments.table_to_rejects(self.load_rejects(info))
        for record in sorted(self.tail.values(), key=lambda record: record.shard.unit_index):
            found += record.rejects
        return found

    def load_rejects(self, info: SegmentInfo) -> pa.Table:
        data = self._read_checked(info.rejects_name, info.rejects_bytes, info.rejects_checksum)
        return index_segments.read_rejects(data, what=info.rejects_name, num_rejects=info.num_rejects)

    def _load(self, info: SegmentInfo) -> pa.Table:
        data = self._read_checked(info.name, info.num_bytes, info.checksum)
        return index_segments.read_entries(data, what=info.name, num_entries=info.num_entries)

    def _read_checked(self, name: str, num_bytes: int, checksum: str) -> pa.Buffer:
        if self._objects.is_local:
            try:
                data = pa.memory_map(str(self._objects.local_path(name))).read_buffer()
            except FileNotFoundError as error:
                raise ObjectNotFoundError(f"{name} does not exist; run `verify`") from error
        else:
            data = pa.py_buffer(self._objects.get(name, max_bytes=num_bytes))
        if data.size != num_bytes or index_segments.checksum(data) != checksum:
            raise CorruptManifestError(
                f"{name} has {data.size} bytes and does not match its size or checksum in {INDEX_NAME}; "
                "restore it from a copy of the store"
            )
        return data

    def _read_records(self, names: list[str]) -> bool:
        """Read what is new of the listed records; False if one vanished into the index meanwhile."""
        units = {unit for name in names if (unit := unit_id_of(name)) is not None}
        self.tail = {unit: record for unit, record in self.tail.items() if unit in units}
        late = set(self.late).intersection(names)
        unseen = sorted(commit_name(unit) for unit in units - self.tail.keys())
        unseen = [name for name in unseen if name not in late]
        for name, data in zip(unseen, self._objects.get_many(unseen), strict=True):
            if data is None:
                return False
            record = self.decode_record(data, name)
            self.tail[record.shard.unit_id] = record
        for unit, record in list(self.tail.items()):
            if self.compacted.find(record.shard.unit_index, unit) is not None:
                late.add(commit_name(unit))
                del self.tail[unit]
        self.late = sorted(late)
        return True


def encode_pointer(pointer: IndexPointer) -> bytes:
    return strict_json.encode(pointer)


def decode_pointer(data: bytes) -> IndexPointer:
    """`index.json` of an untrusted store. Raises CorruptManifestError and its siblings."""
    value = strict_json.parse_object(data, what=INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
    check_version(value, what=INDEX_NAME)
    pointer = strict_json.decode(IndexPointer, value, what=INDEX_NAME)
    for info in pointer.segments:
        names = [info.name, *([info.rejects_name] if info.rejects_name else [])]
        if not all(index_segments.valid_segment_name(name) for name in names):
            raise CorruptManifestError(
                f"{INDEX_NAME} names the segment {info.name!r:.120}; names must be index/<16 hexadecimal "
                "digits>.arrow: the store is damaged or hostile"
            )
        sizes = (info.num_bytes, info.rejects_bytes)
        if not all(0 <= size <= MAX_SEGMENT_BYTES for size in sizes) or not all(
            0 <= count <= MAX_SEGMENT_ENTRIES for count in (info.num_entries, info.num_rejects)
        ):
            raise CorruptManifestError(
                f"{INDEX_NAME}: segment {info.name} claims a size outside 0..{MAX_SEGMENT_BYTES} bytes or "
                f"0..{MAX_SEGMENT_ENTRIES} rows"
            )
    if len({info.name for info in pointer.segments}) != len(pointer.segments):
        raise CorruptManifestError(f"{INDEX_NAME} names a segment twice")
    return pointer
