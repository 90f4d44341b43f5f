"""What may be removed from a store, and removing it: never what could be the only copy of labels.

Each rule says why nothing can come to need the object later:

- A shard of a unit that another attempt has committed: an attempt counts in one round of its unit only,
  and that round is taken. It is kept while the unit's own shard is damaged or gone.
- A shard of a unit that is not committed is kept, however old: its writer may be suspended, or the index
  may be an old one. Only what does not even begin and end as a shard is removed.
- A segment that `index.json` does not name: `index.json` is replaced before the segment goes, so that a
  compactor suspended before its own replacement fails.
- An id index whose segment `index.json` does not name: it can be made anew from the shards.
- A commit record whose unit the index has, or whose round is over: no record of that name counts again.
- A codebook set beside the one that the store names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

from logitstore.codebook_objects import CODEBOOKS_PREFIX, CURRENT_CODEBOOKS
from logitstore.errors import CorruptShardError, IndexLostError, StoreChangedError, UnsuitablePlaceError
from logitstore.index.absence import segment_units
from logitstore.index.commits import COMMITS_PREFIX, SHARDS_PREFIX, record_place, shard_place
from logitstore.index.ids.id_index import segment_of
from logitstore.index.pointer import INDEX_NAME, valid_tombstone_name
from logitstore.index.segments import valid_segment_name
from logitstore.job_objects import CARD_NAME, JOB_NAMES, JOB_PREFIXES
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.objects.opening import ObjectInfo, is_temporary
from logitstore.objects.probing import PROBE_PREFIX
from logitstore.shard.arrow_file import ArrowFile
from logitstore.shard.schema import SHARD_FORMAT
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import FILES_NAME
from logitstore.tools.findings import Findings, Problem

_CODEBOOK_NAME = re.compile(r"codebooks/[0-9a-f]{32}\.bin")
_TOKENIZER_FILE = re.compile(r"tokenizer/[0-9a-f]{32}")
_PROBE_NAME = re.compile(PROBE_PREFIX + r"[0-9a-f]{16}\.json")
_REBUILD = "`penumbra store rebuild-index` takes it into the index"
_AGAIN = "the job, run again, has labeled the unit anew"


def find_garbage(
    store: LogitStore, objects: dict[str, ObjectInfo], findings: Findings, oldest_live: float
) -> None:
    """Note what may be removed, and what lies there unnamed and is kept.

    `objects` were listed before the commits were read, so that a listed shard whose unit is committed by
    now under another name can never become part of the store.
    """
    _sort_shards(store, objects, findings, oldest_live)
    _sort_segments(store, objects, findings, oldest_live)
    late = set(store.late_records())
    named = {info.name for info in store.index_pointer()[0].deleted}
    for name, info in objects.items():
        if name in late:
            note_garbage(findings, info, "a record of a unit that the index already has, or has had")
        elif _PROBE_NAME.fullmatch(name):
            if info.modified_sec < oldest_live:
                note_garbage(findings, info, "what a job wrote to try the server's conditions")
        elif valid_tombstone_name(name) and name not in named:
            message = "a deletion that index.json does not name: " + _REBUILD
            _keep(findings, "unnamed_deletion", name, message)
        elif not _is_known(name):
            _keep(findings, "foreign_object", name, "no part of a store; it is left alone")
    for info in store.objects.list_temporary():
        if info.modified_sec < oldest_live:
            note_garbage(findings, info, "an unfinished write of a process that died")


def find_codebook_garbage(
    objects: dict[str, ObjectInfo], findings: Findings, current: str | None, oldest_live: float
) -> None:
    """Codebook sets beside the store's own, whose hash is `current` (32 hexadecimal digits)."""
    for name, info in objects.items():
        if not _CODEBOOK_NAME.fullmatch(name) or name == f"{CODEBOOKS_PREFIX}{current}.bin":
            continue
        if current is not None:
            note_garbage(findings, info, "a codebook set that lost to the store's own")
        elif info.modified_sec < oldest_live:  # otherwise of a writer about to name it
            message = f"a codebook set, but there is no {CURRENT_CODEBOOKS} to name one; it is kept"
            _keep(findings, "unnamed_codebooks", name, message)


def repair(
    store: LogitStore,
    findings: Findings,
    *,
    remove_most: bool = False,
    announce: Callable[[list[ObjectInfo]], None] | None = None,
) -> int:
    """Remove the garbage that `verify_store` found; the number of objects removed.

    `announce` is told of the objects before any is gone. A committed shard is never among them, whatever
    its state: `uncommit` lets its unit be labeled again.

    Raises IndexLostError where labels lie that no index names, StoreChangedError if more bytes of shards
    would go than stay, unless `remove_most`.
    """
    if any(problem.kind == "index_lost" for problem in findings.errors):
        raise IndexLostError(
            f"{store.uri} has units that {INDEX_NAME} does not name, so nothing is removed; run "
            f"`penumbra store rebuild-index {store.uri}` first"
        )
    store.refresh()
    removed = _still_garbage(store, findings)
    _refuse_most(store, removed, remove_most)
    if announce and removed:
        announce(removed)
    if any(valid_segment_name(info.name) for info in removed):
        with contextlib.suppress(UnsuitablePlaceError):  # where nobody can compact
            store.fence_compactors()
        removed = [info for info in removed if info.name not in store.index_names()]
    store.objects.delete_many(info.name for info in removed if not is_temporary(info.name))
    store.objects.delete_temporary(info for info in removed if is_temporary(info.name))
    return len(removed)


def note_garbage(findings: Findings, info: ObjectInfo, reason: str) -> None:
    findings.garbage.append(info)
    message = f"{reason} ({info.num_bytes} bytes); `verify --repair` removes it"
    findings.problems.append(Problem("garbage", "garbage", info.name, message))


def _keep(findings: Findings, kind: str, name: str, message: str) -> None:
    findings.problems.append(Problem("garbage", kind, name, message))


def _sort_shards(
    store: LogitStore, objects: dict[str, ObjectInfo], findings: Findings, oldest_live: float
) -> None:
    entries = store.shards()
    live = {entry.name for entry in entries}
    committed = set(entries.unit_ids())
    dropped = store.dropped_attempts()
    bad_units = {place.unit_id for name in findings.bad_shards if (place := shard_place(name))}
    for name, info in objects.items():
        place = shard_place(name)
        if place is None or name in live:
            continue
        if place.unit_id in bad_units:
            message = f"another shard of unit {place.unit_id}, whose own is damaged or gone; it is kept"
            _keep(findings, "spare_shard", name, message)
        elif place.unit_id in committed:
            note_garbage(findings, info, "the shard of a writer that lost its unit to another")
        elif info.modified_sec < oldest_live:  # otherwise of a writer about to commit
            _sort_unnamed_shard(store, info, findings, is_dropped=place.attempt in dropped)


def _sort_unnamed_shard(store: LogitStore, info: ObjectInfo, findings: Findings, *, is_dropped: bool) -> None:
    try:
        is_shard = _is_shard(store, info)
    except OSError:
        return  # that it cannot be read now proves nothing
    if not is_shard:
        findings.no_shards.add(info.name)
        note_garbage(findings, info, "what no record names and is no shard, left by a writer that died")
        return
    if is_dropped:  # `rebuild-index` leaves it out too
        message = f"labels ({info.num_bytes} bytes) of a unit that was un-committed; kept until {_AGAIN}"
        _keep(findings, "uncommitted_shard", info.name, message)
        return
    message = (
        f"labels ({info.num_bytes} bytes) that no record names; kept, it may be their only copy: {_REBUILD}"
    )
    _keep(findings, "unnamed_shard", info.name, message)


def _is_shard(store: LogitStore, info: ObjectInfo) -> bool:
    """Whether the object starts and ends as a shard does, whatever can be decoded of it now."""
    with store.objects.open(info.name, num_bytes=info.num_bytes) as file:
        try:
            metadata = ArrowFile(file).schema().metadata or {}
        except CorruptShardError:
            return False
    return metadata.get(b"format") == SHARD_FORMAT.encode()


def _sort_segments(
    store: LogitStore, objects: dict[str, ObjectInfo], findings: Findings, oldest_live: float
) -> None:
    named = store.index_names()
    lost = store.lost_units()
    for name, info in objects.items():
        segment = segment_of(name)
        if segment is not None and segment not in named and info.modified_sec < oldest_live:
            note_garbage(findings, info, "record ids of an index segment that is not in use")
        if not valid_segment_name(name) or name in named:
            continue
        entries = objects.get(name.replace("-rejects.arrow", ".arrow"), info)
        if lost and lost & segment_units(store.objects, entries):
            message = f"a segment with units that {INDEX_NAME} does not name: {INDEX_NAME} is old; {_REBUILD}"
            findings.error("index_lost", name, message)
        elif info.modified_sec < oldest_live:
            note_garbage(findings, info, "an index segment that is not in use")


def _still_garbage(store: LogitStore, findings: Findings) -> list[ObjectInfo]:
    """What was found and is still garbage by a new look at the index."""
    entries = store.shards()
    live = {entry.name for entry in entries}
    committed = set(entries.unit_ids())
    late = set(store.late_records())
    named = store.index_names()
    kept = []
    for info in findings.garbage:
        place = shard_place(info.name)
        if record_place(info.name) is not None and info.name not in late:
            continue
        if segment_of(info.name) in named:
            continue
        if place is not None and (
            info.name in live or (place.unit_id not in committed and info.name not in findings.no_shards)
        ):
            continue
        kept.append(info)
    return kept


def _refuse_most(store: LogitStore, removed: list[ObjectInfo], remove_most: bool) -> None:
    going = sum(info.num_bytes for info in removed if info.name.startswith(SHARDS_PREFIX))
    staying = int(store.shards().column("num_bytes").sum())
    if going > staying and not remove_most:
        raise StoreChangedError(
            f"{store.uri}: {going:,} bytes of shards would be removed and {staying:,} stay, so nothing is "
            "removed: a store that loses most of itself may have an old index; look at what `verify` lists, "
            "then add --remove-most"
        )


def _is_known(name: str) -> bool:
    if name.startswith(COMMITS_PREFIX):
        return record_place(name) is not None
    return (
        name in (MANIFEST_NAME, INDEX_NAME, CURRENT_CODEBOOKS, CARD_NAME)
        or name in JOB_NAMES
        or name.startswith(JOB_PREFIXES)
        or name == FILES_NAME
        or _TOKENIZER_FILE.fullmatch(name) is not None
        or shard_place(name) is not None
        or valid_segment_name(name)
        or segment_of(name) is not None
        or valid_tombstone_name(name)
        or _CODEBOOK_NAME.fullmatch(name) is not None
    )
