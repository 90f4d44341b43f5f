"""Labels that no index names: a missing or old `index.json` or `manifest.json` proves no store empty.

After compaction one small object is all that names the shards. A copy that was cut off, or left it out,
holds every label and names none. So where nothing is committed the shards are looked for, and where the
manifest or the index is gone while shards or segments lie there, that is an error and nothing is written.
"""

from __future__ import annotations

import math
import time

from logitstore.errors import (
    NOT_THERE,
    AccessRefusedError,
    CorruptManifestError,
    IndexLostError,
    StoreExistsError,
    UnsupportedFormatError,
)
from logitstore.index import segments as index_segments
from logitstore.index.commits import COMMITS_PREFIX, SHARDS_PREFIX, shard_place
from logitstore.index.committed import CommittedUnits
from logitstore.index.pointer import (
    INDEX_NAME,
    INDEX_PREFIX,
    MAX_INDEX_BYTES,
    MAX_SEGMENT_BYTES,
    decode_pointer,
)
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.objects.opening import ObjectInfo, Objects

LIVE_SHARD_SEC = 3600.0
"""A shard that no record names may be of a writer at work until it is so old."""
_REBUILD = "restore {name} from the copy that has it, or run `penumbra store rebuild-index {uri}`"


def refuse_lost_manifest(objects: Objects) -> None:
    """Raise IndexLostError if labels lie where no manifest is, whose teacher nobody can tell then."""
    present = [
        what
        for what, found in (
            (INDEX_NAME, objects.exists(INDEX_NAME)),
            ("shards", any(shard_place(name) for name in objects.list(SHARDS_PREFIX))),
            ("commit records", bool(objects.list(COMMITS_PREFIX))),
        )
        if found
    ]
    # Looked for again: another process may have begun the store meanwhile.
    if present and not objects.exists(MANIFEST_NAME):
        raise IndexLostError(
            f"{objects.uri} holds {' and '.join(present)} but no {MANIFEST_NAME}, which no store is "
            f"without: restore {MANIFEST_NAME} from the copy that has it, or choose another place"
        )


def refuse_foreign_index(objects: Objects, manifest: str) -> None:
    """Raise StoreExistsError where there is an `index.json` that is not of the store with this manifest hash.

    Asked of a place without a manifest, where it would be replaced: many programs have a file of that name.
    """
    try:
        pointer = decode_pointer(objects.get(INDEX_NAME, max_bytes=MAX_INDEX_BYTES))
        is_own = pointer.manifest == manifest
    except NOT_THERE:
        return
    except (CorruptManifestError, UnsupportedFormatError):
        is_own = False
    if not is_own:
        raise StoreExistsError(
            f"{objects.uri} has an {INDEX_NAME} and no {MANIFEST_NAME}, so it is of something else and would "
            "be replaced; choose another place, or move it away"
        )


def refuse_lost_index(objects: Objects, units: CommittedUnits, *, writing: bool) -> None:
    """Raise IndexLostError if labels lie here that the index, absent or empty, does not name.

    Where `index.json` is there and empty, as `create` writes it, shards younger than LIVE_SHARD_SEC are those
    of a job that has just begun, and a writer (`writing`) may also find those of writers that were stopped
    before their first commit.
    """
    if units.pointer_etag is not None and (units.tail or units.pointer.generation):
        return
    if units.unlisted:
        raise AccessRefusedError(
            f"{objects.uri} may not be listed, and its {INDEX_NAME} names no unit: units are seen there once "
            "a compaction has taken them into the index; run `penumbra store compact` on the store where it "
            "was made and copy it here again, or read it from a place that may be listed"
        )
    newest_sec = math.inf if units.pointer_etag is None else time.time() - LIVE_SHARD_SEC
    shards = [info for info in unnamed_shards(objects, units) if info.modified_sec < newest_sec]
    lost = lost_units(objects, units)
    if not lost and (not shards or (writing and units.pointer_etag is not None)):
        return
    if units.pointer_etag is None:
        units.refresh()  # the first compaction may have come in between
        if units.pointer_etag is not None:
            refuse_lost_index(objects, units, writing=writing)
            return
    state = "has no" if units.pointer_etag is None else "has an empty"
    names = f"{len(lost):,} units of its index segments" if lost else ""
    held = f"{len(shards):,} shards ({sum(info.num_bytes for info in shards):,} bytes)" if shards else ""
    what = " and ".join(filter(None, (held, names)))
    raise IndexLostError(
        f"{objects.uri} {state} {INDEX_NAME}, but holds {what} that nothing names, so labels lie here that "
        "are not seen: " + _REBUILD.format(name=INDEX_NAME, uri=objects.uri)
    )


def unnamed_shards(objects: Objects, units: CommittedUnits) -> list[ObjectInfo]:
    """Shards of units that are not committed: of living or dead writers, or of a lost index."""
    committed = units.unit_ids()
    return [
        info
        for info in objects.list_info(SHARDS_PREFIX)
        if (place := shard_place(info.name)) is not None and place.unit_id not in committed
    ]


def lost_units(objects: Objects, units: CommittedUnits) -> set[str]:
    """Units of segments that `index.json` does not name, which are committed nowhere else.

    Compaction writes a segment of records that stay until `index.json` names it, so there are none unless
    `index.json` was lost or is an old one.
    """
    named = {info.name for info in units.pointer.segments}
    found: set[str] = set()
    for info in objects.list_info(INDEX_PREFIX):
        if index_segments.is_entries_name(info.name) and info.name not in named:
            found |= segment_units(objects, info)
    if not found - units.unit_ids():
        return set()
    units.refresh()  # the segment may have come into use meanwhile
    return found - units.unit_ids() - units.dropped_units()


def segment_units(objects: Objects, info: ObjectInfo) -> set[str]:
    """Ids of the units in a segment that no index vouches for; none if it is gone or no whole segment."""
    table = index_segments.read_unnamed_entries(objects, info.name, max_bytes=MAX_SEGMENT_BYTES)
    return set() if table is None else set(table.column("unit_id").to_pylist())
