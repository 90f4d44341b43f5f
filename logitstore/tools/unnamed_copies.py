"""Copies of deleted records in objects that no index names: what a purge still has to remove.

A purge that was cut off leaves the shards that it had replaced, and a writer that lost its unit to another
has left its own. Nothing names either, so that no reader gets them, but their bytes are there.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from logitstore.errors import (
    AccessRefusedError,
    CorruptShardError,
    IndexLostError,
    ObjectNotFoundError,
    StoreError,
)
from logitstore.index.absence import LIVE_SHARD_SEC
from logitstore.index.commits import shard_place
from logitstore.index.deletions import DeletedRecords
from logitstore.index.ids.shard_ids import plain_blocks
from logitstore.job_objects import PLAN_SEGMENTS_PREFIX
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.store import LogitStore
from logitstore.tools.findings import Findings
from logitstore.tools.garbage import find_garbage, repair


@dataclass(frozen=True, slots=True)
class CopiesResult:
    """What was done about copies of deleted records."""

    num_removed: int
    kept: tuple[str, ...]
    """Why others are still there, and what to do."""


def remove_unnamed_copies(store: LogitStore, deleted: DeletedRecords) -> CopiesResult:
    """Remove what no index names and may hold a deleted record: shards of units whose own shard is sound,
    segments and lists of ids, records of commits that came too late, parts of a plan.

    Of shards only those that do hold one. No job may be at work on the store.
    """
    try:
        objects = {info.name: info for info in store.objects.list_info()}
    except AccessRefusedError as error:
        return CopiesResult(0, (f"objects that nothing names were not looked for: {error}",))
    store.refresh()
    found, kept = Findings(), list[str]()
    find_garbage(store, objects, found, oldest_live=time.time())
    rivals = {place.unit_id for info in found.garbage if (place := shard_place(info.name)) is not None}
    of_units = {entry.unit_id: entry for entry in store.shards() if entry.unit_id in rivals} if rivals else {}
    removed = Findings(problems=found.errors, no_shards=found.no_shards)
    for info in found.garbage:
        place = shard_place(info.name)
        if place is None:
            # What is not yet a whole object may be of another command that is at work.
            if info.name in objects or info.modified_sec < time.time() - LIVE_SHARD_SEC:
                removed.garbage.append(info)
        elif info.name in found.no_shards:
            removed.garbage.append(info)
        elif _holds(store, info, deleted):
            if _is_sound(store, of_units[place.unit_id]):
                removed.garbage.append(info)
            else:
                kept.append(
                    f"{info.name} holds them and may be the only copy of others, as its unit's own shard is "
                    f"damaged: `penumbra store uncommit {store.uri} --bad`, label the unit again, then purge"
                )
    remedies = {
        "unnamed_shard": f"no record names it: `penumbra store rebuild-index {store.uri}` takes it into the "
        "index, then purge again",
        "uncommitted_shard": "its unit was un-committed: run the job again, which labels the unit anew, then "
        "purge again",
    }
    for problem in found.problems:
        if problem.kind in remedies and _holds(store, objects[problem.where], deleted):
            kept.append(f"{problem.where} holds them and {remedies[problem.kind]}")
    try:
        num_removed = repair(store, removed, remove_most=True)
    except IndexLostError as error:
        return CopiesResult(0, (*kept, str(error)))
    unnamed = _unnamed_plan_parts(store.objects, objects)
    store.objects.delete_many(unnamed)
    return CopiesResult(num_removed + len(unnamed), tuple(kept))


def _holds(store: LogitStore, info: ObjectInfo, deleted: DeletedRecords) -> bool:
    """Whether a deleted record is in the shard; True of what cannot be read as one."""
    try:
        blocks = plain_blocks(store.objects, info, store.manifest.labels, store.codebooks())
        return any(name in deleted for plain in blocks for name in plain.record_id)
    except ObjectNotFoundError:
        return False  # its writer, which lost the unit to another, has removed it
    except CorruptShardError:
        return True


def _is_sound(store: LogitStore, entry: ShardEntry) -> bool:
    if not entry.name:
        return True  # every record of the unit was deleted or rejected
    try:
        with store.open_shard(entry) as reader:
            for _ in reader.iter_sequences():
                pass
    except StoreError:
        return False
    return True


def _unnamed_plan_parts(objects: Objects, listed: dict[str, ObjectInfo]) -> list[str]:
    """Data of a plan's segments that were written anew. A plan that cannot be read keeps all."""
    parts = [name for name in listed if name.startswith(PLAN_SEGMENTS_PREFIX)]
    try:
        named = {json.loads(objects.get(name))["data"] for name in parts if name.endswith(".json")}
    except (StoreError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return [name for name in parts if not name.endswith(".json") and name not in named]
