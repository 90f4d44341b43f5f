"""Commit records: one small object per work unit, whose creation makes the unit's shard visible."""

from __future__ import annotations

import re
from dataclasses import dataclass

from logitstore.errors import CorruptManifestError, UnsafeNameError
from logitstore.manifest import strict_json
from logitstore.manifest.fields import FORMAT_VERSION, ShardEntry
from logitstore.manifest.reading import check_version
from logitstore.records import Reject

COMMITS_PREFIX = "commits/"
SHARDS_PREFIX = "shards/"
MAX_COMMIT_BYTES = 64 * 2**20
MAX_UNIT_INDEX = 2**40
_UNIT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHARD_NAME = re.compile(r"shards/(\d{8,})-(.+)-([0-9a-f]{16})\.arrow")
_RECORD_NAME = re.compile(r"commits/(?:again-([1-9]\d{0,5})/)?([^/]+)\.json")
_ATTEMPT = re.compile(r"[0-9a-f]{16}")
_CHECKSUM = re.compile(r"blake2b-128:[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a worker puts, if absent, when a unit is done."""

    attempt: str
    """16 hexadecimal digits drawn by the writer: tells its own record from a rival's."""
    manifest: str
    """`manifest_hash` of the store it was made for."""
    shard: ShardEntry
    rejects: tuple[Reject, ...] = ()
    format_version: int = FORMAT_VERSION


def commit_name(unit_id: str, round_number: int = 0) -> str:
    """The record's name. An un-committed unit is in a new round, and so has a name never used before."""
    folder = f"again-{round_number}/" if round_number else ""
    return f"{COMMITS_PREFIX}{folder}{check_unit_id(unit_id)}.json"


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """What the name of a commit record says."""

    unit_id: str
    round_number: int
    """How often the unit had been un-committed when its writer put the record."""


def record_place(name: str) -> RecordPlace | None:
    """The unit and round that a commit record's name tells; None for an object that is no commit record."""
    match = _RECORD_NAME.fullmatch(name)
    if match is None or not _UNIT_ID.fullmatch(match[2]):
        return None
    return RecordPlace(match[2], int(match[1] or 0))


def shard_name(unit_index: int, unit_id: str, attempt: str) -> str:
    """The one name an attempt's shard may have; unique even when two workers compute one unit."""
    return f"{SHARDS_PREFIX}{unit_index:08d}-{unit_id}-{attempt}.arrow"


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """What the name of a shard says."""

    unit_index: int
    unit_id: str
    attempt: str


def shard_place(name: str) -> ShardPlace | None:
    """What a shard's name says; None for an object that no store names so."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None or not _UNIT_ID.fullmatch(match[2]) or int(match[1]) >= MAX_UNIT_INDEX:
        return None
    place = ShardPlace(int(match[1]), match[2], match[3])
    return place if name == shard_name(place.unit_index, place.unit_id, place.attempt) else None


def place_of(entry: ShardEntry) -> ShardPlace:
    """What the name of an entry's shard says. Raises CorruptManifestError for a name that is none."""
    place = shard_place(entry.name)
    if place is None:
        raise CorruptManifestError(
            f"the shard of unit {entry.unit_id} is named {entry.name!r:.200}; it must be named as "
            f"{shard_name(entry.unit_index, entry.unit_id, '0' * 16)}: restore the index from a copy"
        )
    return place


def check_unit_id(unit_id: str) -> str:
    if not _UNIT_ID.fullmatch(unit_id):
        raise UnsafeNameError(
            f"unit id {unit_id!r:.140} must be 1 to 128 letters, digits, '.', '_' or '-', not starting with "
            "'.' or '-', since it becomes part of object names"
        )
    return unit_id


def check_attempt(attempt: str, *, what: str) -> None:
    if not _ATTEMPT.fullmatch(attempt):
        raise CorruptManifestError(f"{what}: attempt {attempt!r:.40} must be 16 hexadecimal digits")


def encode_commit(record: CommitRecord) -> bytes:
    """JSON of a valid record. Raises CorruptManifestError, UnsafeNameError."""
    check_entry(record.shard, record.attempt, what=f"the record of unit {record.shard.unit_id}")
    try:
        data = strict_json.encode(record)
    except ValueError as error:
        raise CorruptManifestError(
            f"the commit record of unit {record.shard.unit_id} is no JSON ({error}); give its rejects "
            "Unicode text and finite numbers"
        ) from error
    if len(data) > MAX_COMMIT_BYTES:
        raise CorruptManifestError(
            f"the commit record of unit {record.shard.unit_id} has {len(data)} bytes, at most "
            f"{MAX_COMMIT_BYTES} are allowed; use smaller units"
        )
    return data


def decode_commit(data: bytes, *, what: str) -> CommitRecord:
    """The record in `data`, from an untrusted store. Raises CorruptManifestError and its siblings."""
    value = strict_json.parse_object(data, what=what, max_bytes=MAX_COMMIT_BYTES)
    check_version(value, what=what)
    record = strict_json.decode(CommitRecord, value, what=what)
    check_entry(record.shard, record.attempt, what=what)
    if len(record.rejects) != record.shard.num_rejects:
        raise CorruptManifestError(
            f"{what} lists {len(record.rejects)} rejects but counts {record.shard.num_rejects}; "
            "both must agree"
        )
    place = record_place(what)
    if what.startswith(COMMITS_PREFIX) and (place is None or place.unit_id != record.shard.unit_id):
        raise CorruptManifestError(f"{what} holds the record of unit {record.shard.unit_id}, not its own")
    return record


def check_manifest_hash(found: str, expected: str, *, what: str) -> None:
    """Raise CorruptManifestError if something was made for another manifest than the one beside it."""
    if found != expected:
        raise CorruptManifestError(
            f"{what} was made for the manifest {found!r:.40}, the one here is {expected!r}: manifest.json or "
            f"{what} is of another teacher, input or label shape; restore it from a copy of the store"
        )


def check_entry(entry: ShardEntry, attempt: str, *, what: str) -> None:
    """Rules of a shard entry: plain names, sane counts. Raises CorruptManifestError, UnsafeNameError."""
    check_unit_id(entry.unit_id)
    check_attempt(attempt, what=what)
    if not 0 <= entry.unit_index < MAX_UNIT_INDEX:
        raise CorruptManifestError(f"{what}: unit_index {entry.unit_index} must lie in 0..{MAX_UNIT_INDEX}")
    counts = ("num_sequences", "num_rows", "num_tokens", "num_bytes", "num_rejects")
    if negative := [name for name in counts if getattr(entry, name) < 0]:
        raise CorruptManifestError(
            f"{what}: {negative[0]} {getattr(entry, negative[0])} must not be negative"
        )
    if entry.seconds < 0:
        raise CorruptManifestError(f"{what}: seconds {entry.seconds} must not be negative")
    if entry.name == "":
        if entry.num_sequences or entry.num_bytes or entry.checksum:
            raise CorruptManifestError(f"{what}: a unit without a shard must have no sequences and no bytes")
        return
    if entry.name != shard_name(entry.unit_index, entry.unit_id, attempt):
        raise UnsafeNameError(
            f"{what}: the shard's name {entry.name!r:.200} must be "
            f"{shard_name(entry.unit_index, entry.unit_id, attempt)}; the store is damaged or hostile"
        )
    if not _CHECKSUM.fullmatch(entry.checksum):
        raise CorruptManifestError(
            f"{what}: checksum {entry.checksum!r:.80} must be 'blake2b-128:' and 32 hexadecimal digits"
        )
