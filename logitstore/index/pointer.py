"""`index.json`: the one small object that names the index's segments and the attempts that count no more."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from logitstore.errors import CorruptManifestError
from logitstore.index import segments as index_segments
from logitstore.index.commits import check_attempt, check_unit_id
from logitstore.manifest import strict_json
from logitstore.manifest.fields import FORMAT_VERSION
from logitstore.manifest.reading import check_version
from logitstore.objects.opening import MAX_TAGGED_BYTES, Objects

INDEX_NAME = "index.json"
INDEX_PREFIX = "index/"
MAX_INDEX_BYTES = MAX_TAGGED_BYTES
MAX_SEGMENT_BYTES = 4 * 2**30
MAX_SEGMENT_ENTRIES = 2**24
_ABSENT_IF_EMPTY = ("dropped", "deleted")
_TOMBSTONE_NAME = re.compile(r"deleted/[0-9a-f]{16}\.json")


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
class DroppedAttempt:
    """One attempt at a unit that was committed and then un-committed: it never counts again."""

    unit_id: str
    attempt: str


@dataclass(frozen=True, slots=True)
class TombstoneInfo:
    """One deletion, as `index.json` names it: see `deletions.py`."""

    name: str
    num_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class IndexPointer:
    """`index.json`: replaced by compare-and-swap, so it always names one consistent set of segments."""

    generation: int
    manifest: str
    """`manifest_hash` of the store's manifest."""
    segments: tuple[SegmentInfo, ...] = ()
    dropped: tuple[DroppedAttempt, ...] = ()
    """Absent from the JSON while empty. The number of a unit's dropped attempts is its round."""
    deleted: tuple[TombstoneInfo, ...] = ()
    """Absent from the JSON while empty, and refused by readers that do not know it: they would show what was
    taken down."""
    format_version: int = FORMAT_VERSION


def encode_pointer(pointer: IndexPointer) -> bytes:
    value = dataclasses.asdict(pointer)
    for name in _ABSENT_IF_EMPTY:
        if not value[name]:
            del value[name]
    return strict_json.encode(value)


def swap_pointer(objects: Objects, etag: str | None, pointer: IndexPointer) -> bool:
    """Publish `pointer` if `index.json` is still what was read, None: not there. A lost reply counts as
    published."""
    data = encode_pointer(pointer)
    if etag is None:
        swapped = objects.put_if_absent(INDEX_NAME, data)
    else:
        swapped = objects.put_if_match(INDEX_NAME, data, etag)
    return swapped or objects.get(INDEX_NAME) == data


def decode_pointer(data: bytes) -> IndexPointer:
    """`index.json` of an untrusted store. Raises CorruptManifestError and its siblings."""
    value = strict_json.parse_object(data, what=INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
    check_version(value, what=INDEX_NAME)
    pointer = strict_json.decode(
        IndexPointer, {**{name: [] for name in _ABSENT_IF_EMPTY}, **value}, what=INDEX_NAME
    )
    for dropped in pointer.dropped:
        check_unit_id(dropped.unit_id)
        check_attempt(dropped.attempt, what=INDEX_NAME)
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
    for tombstone in pointer.deleted:
        if not valid_tombstone_name(tombstone.name) or not 0 <= tombstone.num_bytes <= MAX_SEGMENT_BYTES:
            raise CorruptManifestError(
                f"{INDEX_NAME} names the deletion {tombstone.name!r:.120} of {tombstone.num_bytes} "
                "bytes; names "
                "must be deleted/<16 hexadecimal digits>.json: the store is damaged or hostile"
            )
    if len({info.name for info in pointer.segments}) != len(pointer.segments):
        raise CorruptManifestError(f"{INDEX_NAME} names a segment twice")
    return pointer


def valid_tombstone_name(name: str) -> bool:
    return _TOMBSTONE_NAME.fullmatch(name) is not None
