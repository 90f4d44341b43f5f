"""Tombstones: sequences that were taken down, which no reader hands out from that moment on.

A tombstone is an object below `deleted/` that `index.json` names, so one replacement of that small object
takes the sequences out for everybody. It says by attempt and place which sequences of which shards are
meant, and by digest which records: a record that is deleted is not labeled again, and `verify --against`
does not miss it. It holds no record id. `compact --purge` rewrites the shards concerned, and a tombstone
without places is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.errors import CorruptManifestError, ObjectNotFoundError
from logitstore.index import segments as index_segments
from logitstore.index.commits import check_attempt, check_manifest_hash, check_unit_id
from logitstore.index.pointer import INDEX_NAME, MAX_INDEX_BYTES, TombstoneInfo, decode_pointer
from logitstore.inputs.identity import digest_of
from logitstore.inputs.parts import parent_id
from logitstore.manifest import strict_json
from logitstore.manifest.fields import FORMAT_VERSION
from logitstore.manifest.reading import check_version
from logitstore.objects.opening import Objects

DELETED_PREFIX = "deleted/"
MAX_TOMBSTONE_BYTES = 512 * 2**20
_DIGESTS = re.compile(r"(?:[0-9a-f]{32})*")
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class DeletedSequences:
    """The deleted sequences of one attempt at a unit."""

    unit_id: str
    attempt: str
    places: tuple[int, ...]
    """Places within the shard, ascending."""
    num_rows: int
    """Label rows of these sequences."""
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One deletion."""

    manifest: str
    reason: str
    deleted_sec: float
    """Unix time."""
    records: str
    """Blake2b-128 digests of the record ids, 32 hexadecimal digits each, one behind the other."""
    units: tuple[DeletedSequences, ...] = ()
    format_version: int = FORMAT_VERSION


class Deletions:
    """All tombstones of a store together."""

    def __init__(
        self, tombstones: Iterable[Tombstone] = (), in_tail: Iterable[DeletedSequences] = ()
    ) -> None:
        """`in_tail` are sequences of deleted records that no tombstone names, of shards outside the index."""
        self.tombstones = tuple(tombstones)
        self.records = frozenset(
            one.records[start : start + 32]
            for one in self.tombstones
            for start in range(0, len(one.records), 32)
        )
        """Digests of the deleted records' ids, as 32 hexadecimal digits."""
        self._places: dict[str, list[int]] = {}
        self._counts: dict[str, np.ndarray] = {}
        for unit in (*(unit for one in self.tombstones for unit in one.units), *in_tail):
            self._places.setdefault(unit.attempt, []).extend(unit.places)
            counts = np.array([len(unit.places), unit.num_rows, unit.num_tokens])
            self._counts[unit.attempt] = self._counts.get(unit.attempt, 0) + counts

    def places(self, attempt: str) -> np.ndarray:
        """int64, ascending: the deleted sequences of an attempt's shard."""
        found = self._places.get(attempt)
        return NOTHING if found is None else np.unique(np.array(found, np.int64))

    @property
    def attempts(self) -> set[str]:
        """Attempts whose shards hold deleted sequences."""
        return set(self._places)

    def subtract(self, table: pa.Table) -> pa.Table:
        """Index entries with the counts of what is left. Raises CorruptManifestError for too many deleted."""
        if not self._places:
            return table
        attempts = pa.array([bytes.fromhex(attempt) for attempt in self._counts], pa.binary(8))
        found = pc.call_function("index_in", [table.column("attempt")], pc.SetLookupOptions(attempts))
        place_of = found.to_numpy(zero_copy_only=False)
        concerned = np.flatnonzero(~np.isnan(place_of.astype(float)))
        counts = np.array(list(self._counts.values()))[place_of[concerned].astype(int)]
        for number, name in enumerate(("num_sequences", "num_rows", "num_tokens")):
            values = table.column(name).to_numpy().copy()
            values[concerned] -= counts[:, number]
            if values.min(initial=0) < 0:
                raise CorruptManifestError(
                    f"{DELETED_PREFIX} names more deleted {name[4:]} of a unit than it has; restore it "
                    "from a copy of the store"
                )
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values))
        return table


@dataclass(frozen=True, slots=True)
class DeletedRecords:
    """Which records were taken down, `name in self`; None never is. With a record all of its parts are."""

    digests: frozenset[str]
    """As `Deletions.records`."""
    has_parts: bool
    """Whether records of the store are parts of those of the input."""

    def __contains__(self, name: str | None) -> bool:
        if name is None or not self.digests:
            return False
        names = {name, parent_id(name)} if self.has_parts else {name}
        return any(digest_of(one).hex() in self.digests for one in names)


def tombstone_name(token: str) -> str:
    return f"{DELETED_PREFIX}{token}.json"


def write_tombstone(objects: Objects, tombstone: Tombstone, token: str) -> TombstoneInfo:
    """Put a tombstone, which counts once `index.json` names it."""
    data = strict_json.encode(tombstone)
    if len(data) > MAX_TOMBSTONE_BYTES:
        raise CorruptManifestError(
            f"a deletion of {len(tombstone.records) // 32:,} records makes {len(data):,} bytes, at most "
            f"{MAX_TOMBSTONE_BYTES:,} are allowed; delete in several steps"
        )
    name = tombstone_name(token)
    objects.put(name, data)
    return TombstoneInfo(name, len(data), index_segments.checksum(data))


def read_tombstone(objects: Objects, info: TombstoneInfo, manifest: str) -> Tombstone:
    """The tombstone that `index.json` names. Raises CorruptManifestError, also where it is gone."""
    try:
        data = objects.get(info.name, max_bytes=info.num_bytes)
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(
            f"{objects.uri}: {info.name} does not exist, which says what was deleted; restore it from a copy "
            "of the store"
        ) from error
    if len(data) != info.num_bytes or index_segments.checksum(data) != info.checksum:
        raise CorruptManifestError(
            f"{info.name} does not match its size or checksum in {INDEX_NAME}; restore it from a copy of "
            "the store"
        )
    return decode_tombstone(data, manifest, what=info.name)


def decode_tombstone(data: bytes, manifest: str, *, what: str) -> Tombstone:
    """An untrusted tombstone of the store with this manifest hash. Raises CorruptManifestError."""
    value = strict_json.parse_object(data, what=what, max_bytes=MAX_TOMBSTONE_BYTES)
    check_version(value, what=what)
    tombstone = strict_json.decode(Tombstone, value, what=what)
    check_manifest_hash(tombstone.manifest, manifest, what=what)
    if not _DIGESTS.fullmatch(tombstone.records):
        raise CorruptManifestError(f"{what}: records must be digests of 32 hexadecimal digits")
    for unit in tombstone.units:
        check_unit_id(unit.unit_id)
        check_attempt(unit.attempt, what=what)
        ascend = all(a < b for a, b in zip((-1, *unit.places), unit.places, strict=False))
        if not unit.places or not ascend or min(unit.num_rows, unit.num_tokens) < 0:
            raise CorruptManifestError(f"{what}: places of unit {unit.unit_id} must ascend from at least 0")
    return tombstone


def deleted_records(objects: Objects) -> bytes:
    """Digests of 16 bytes of all records that were deleted from the store below `objects`, if there is one.

    For planning, which comes before a store is opened. Raises CorruptManifestError.
    """
    try:
        data = objects.get(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
    except ObjectNotFoundError:
        return b""
    pointer = decode_pointer(data)
    tombstones = [read_tombstone(objects, info, pointer.manifest) for info in pointer.deleted]
    return b"".join(bytes.fromhex(one.records) for one in tombstones)
