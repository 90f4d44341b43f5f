"""`compact --purge`: the bytes of deleted records leave the store, its plan and its lists of rejects.

Only shards that hold deleted sequences are written anew. One replacement of `index.json` brings them in; the
old ones are removed after it, and all copies that nothing names: of an earlier purge that was cut off, or of
writers that lost their unit to another (`unnamed_copies`). Logs are not searched.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from logitstore.errors import CorruptManifestError, ObjectNotFoundError, ObjectStoreError, StoreChangedError
from logitstore.index.changes.compaction import write_segment_objects
from logitstore.index.commits import CommitRecord
from logitstore.index.deletions import DeletedRecords, write_tombstone
from logitstore.index.ids.id_index import ids_name
from logitstore.index.pointer import TombstoneInfo
from logitstore.index.segments import entries_to_table
from logitstore.job_objects import PLAN_PREFIX, PLAN_SEGMENTS_PREFIX, REJECTS_NAME
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.deletion import MAX_SWAP_TRIES, refuse_running_job
from logitstore.tools.unnamed_copies import remove_unnamed_copies

_PLAN_PARTS = ("ids", "prompts", "proofs")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """What a purge wrote anew."""

    num_shards: int
    """Shards written anew, without the deleted sequences."""
    num_plan_records: int
    """Records taken out of the plan."""
    num_rejects: int
    """Rejects taken out of the index, the plan and `rejects.jsonl`."""
    num_unread_lines: int
    """Lines of the lists of rejects that are no rejects, and may name deleted records."""
    not_removed: str
    """Why objects that hold deleted records could not be removed; "" if they were."""
    not_indexed: str = ""
    """Why the index has no index of record ids now, which readers do without; "" if it has one."""


def purge(store: LogitStore, progress: Progress | None = None) -> PurgeResult:
    """Remove what was deleted. Safe to interrupt: repeat it.

    Raises StoreChangedError while a job labels the store or if other processes keep replacing the index,
    UnsuitablePlaceError where no index can be replaced.
    """
    refuse_running_job(store)
    store.objects.require_conditions()
    for _ in range(MAX_SWAP_TRIES):
        store.compact()
        deleted = store.deleted_records
        pointer, etag = store.index_pointer()
        replaced = store.index_segments()
        records, old_shards, num_rejects = _rewritten(store, progress)
        segments = (write_segment_objects(store.objects, records, secrets.token_hex(8)),) if records else ()
        tombstones = _without_places(store, pointer.deleted)
        changed = dataclasses.replace(
            pointer, generation=pointer.generation + 1, segments=segments, deleted=tombstones
        )
        if store.replace_index(changed, etag):
            builder, table = store.id_builder(), entries_to_table(records)
            not_indexed = "".join(builder.build(info, table, replaced) for info in segments)
            break
    else:
        raise StoreChangedError(
            f"{store.uri}: {MAX_SWAP_TRIES} attempts to replace the index lost to other processes; stop what "
            "works on the store, then purge"
        )
    garbage = old_shards + [
        name
        for info in pointer.segments
        for name in (info.name, info.rejects_name, ids_name(info.name))
        if name
    ]
    garbage += [info.name for info in pointer.deleted if info not in tombstones]
    num_records, old_units = _purge_plan(store.objects, deleted)
    num_lines, num_unread = _purge_reject_lists(store.objects, deleted)
    try:
        store.objects.delete_many(garbage + old_units)
        not_removed = "; ".join(remove_unnamed_copies(store, deleted).kept)
    except ObjectStoreError as error:
        not_removed = str(error)
    return PurgeResult(
        num_shards=len(old_shards),
        num_plan_records=num_records,
        num_rejects=num_rejects + num_lines,
        num_unread_lines=num_unread,
        not_removed=not_removed,
        not_indexed=not_indexed,
    )


def _rewritten(store: LogitStore, progress: Progress | None) -> tuple[list[CommitRecord], list[str], int]:
    """All records of the index after the purge, the shards that they replace, and the rejects they lose."""
    deletions, deleted, done, num_lost = store.deletions, store.deleted_records, 0, 0
    records: list[CommitRecord] = []
    old_shards: list[str] = []
    for record in store.index_records():
        rejects = [one for one in record.rejects if one.record_id not in deleted]
        num_lost += len(record.rejects) - len(rejects)
        entry = record.shard
        if record.attempt in deletions.attempts:
            with store.open_shard(entry) as reader:
                sequences = list(reader.iter_sequences())
            new = store.write_attempt(
                entry.unit_id, entry.unit_index, sequences, rejects, entry.seconds, entry.worker
            )
            kept = dataclasses.replace(new.shard, committed_sec=entry.committed_sec)
            records.append(dataclasses.replace(new, shard=kept))
            old_shards.append(entry.name)
            done += 1
            if progress:
                progress("shards", done, len(deletions.attempts))
        else:
            entry = dataclasses.replace(entry, num_rejects=len(rejects))
            records.append(dataclasses.replace(record, shard=entry, rejects=tuple(rejects)))
    return records, old_shards, num_lost


def _without_places(store: LogitStore, infos: tuple[TombstoneInfo, ...]) -> tuple[TombstoneInfo, ...]:
    """Tombstones that name records alone, for those whose sequences are gone."""
    kept: list[TombstoneInfo] = []
    for info, tombstone in zip(infos, store.deletions.tombstones, strict=True):
        if not tombstone.records:
            continue
        if tombstone.units:
            bare = dataclasses.replace(tombstone, units=())
            kept.append(write_tombstone(store.objects, bare, secrets.token_hex(8)))
        else:
            kept.append(info)
    return tuple(kept)


def _purge_plan(objects: Objects, deleted: DeletedRecords) -> tuple[int, list[str]]:
    """Take records out of the units of a job's plan; how many, and the objects that held them.

    Digests of their ids stay, by which the job knows that it has planned them.
    """
    removed, old = 0, list[str]()
    for name in [name for name in objects.list(PLAN_SEGMENTS_PREFIX) if name.endswith(".json")]:
        try:
            segment = json.loads(objects.get(name))
            data = objects.get(segment["data"])
            count, changed, content = _without_records(segment, data, deleted)
        except (
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            ObjectNotFoundError,
            pa.ArrowException,
        ) as error:
            raise CorruptManifestError(
                f"{name} of the store at {objects.uri} is no segment of a plan ({error}); the plan is not "
                "needed once all is labeled: delete plan/, then purge again"
            ) from error
        if count:
            old.append(segment["data"])
            number = name.removeprefix(PLAN_SEGMENTS_PREFIX).removesuffix(".json")
            changed["data"] = f"{PLAN_SEGMENTS_PREFIX}{number}-{secrets.token_hex(4)}.units"
            objects.put(changed["data"], content)
            objects.put(name, json.dumps(changed).encode())
            removed += count
    return removed, old


def _without_records(
    segment: dict[str, Any], data: bytes, deleted: DeletedRecords
) -> tuple[int, dict[str, Any], bytes]:
    """A plan's segment, its data, and how many records they lost."""
    parts: list[bytes] = []
    units: list[list[object]] = []
    removed = num_bytes = 0
    for unit_id, offset, size, num_records, num_tokens in segment["units"]:
        content, counts = data[offset : offset + size], (num_records, num_tokens)
        with pa.ipc.open_stream(content) as reader:
            batch = reader.read_next_batch()
        names = batch.column(batch.schema.get_field_index("record_id")).to_pylist()
        keep = [name not in deleted for name in names]
        if not all(keep):
            removed += keep.count(False)
            batch = batch.filter(pa.array(keep, pa.bool_()))
            content, counts = _stream(batch), (batch.num_rows, _num_tokens(batch))
        units.append([unit_id, num_bytes, len(content), *counts])
        parts.append(content)
        num_bytes += len(content)
    changed = {**segment, "units": units}
    for part in _PLAN_PARTS:
        if part in segment:
            start, end = segment[part]
            parts.append(data[start:end])
            changed[part] = [num_bytes, num_bytes + end - start]
            num_bytes += end - start
    return removed, changed, b"".join(parts)


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _num_tokens(batch: pa.RecordBatch) -> int:
    columns = [batch.column(name) for name in ("prompt_token_ids", "response_token_ids")]
    return sum(len(tokens) for column in columns for tokens in column.to_pylist() if tokens is not None)


def _purge_reject_lists(objects: Objects, deleted: DeletedRecords) -> tuple[int, int]:
    """Lines of deleted records leave `rejects.jsonl` and the plan's lists; how many, and lines not read."""
    names = [REJECTS_NAME, *(name for name in objects.list(PLAN_PREFIX) if name.endswith(".jsonl"))]
    removed = unread = 0
    for name in names:
        try:
            lines = objects.get(name).splitlines(keepends=True)
        except ObjectNotFoundError:
            continue
        named = [_record_named(line) for line in lines]
        unread += sum(one is None for one in named)
        kept = [line for line, one in zip(lines, named, strict=True) if one is None or one not in deleted]
        if len(kept) < len(lines):
            objects.put(name, b"".join(kept))
            removed += len(lines) - len(kept)
    return removed, unread


def _record_named(line: bytes) -> str | None:
    """The record of a line of rejects, "" where it has no id; None for what is no such line."""
    try:
        record_id = json.loads(line)["record_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record_id if isinstance(record_id, str) else ""
