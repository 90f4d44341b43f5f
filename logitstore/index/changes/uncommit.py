"""Un-committing units whose shards are missing or damaged, so that the same job labels them again."""

from __future__ import annotations

import dataclasses
import warnings

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import StoreChangedError
from logitstore.index.changes.compaction import MAX_SWAP_TRIES, compact
from logitstore.index.commits import shard_place
from logitstore.index.committed import CommittedUnits
from logitstore.index.ids.building import IdBuilder
from logitstore.index.pointer import INDEX_NAME, DroppedAttempt, swap_pointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.objects.opening import Objects

MAX_DROPPED = 16_384
"""Attempts that one `index.json` can name as dropped, which keeps it small enough to be replaced at once."""


def uncommit(
    objects: Objects,
    manifest: str,
    shard_names: set[str],
    ids: IdBuilder | None = None,
    reading: TailDeletions | None = None,
) -> list[str]:
    """Drop the attempts that these shards are of; ids of the units dropped, by unit_index.

    The units are moved into the index first, so that one replacement of `index.json` decides. A shard's
    name holds its attempt: a unit that another attempt has committed meanwhile is not touched. Deletes
    nothing.

    Raises StoreChangedError if other processes keep replacing the index, or for more than MAX_DROPPED.
    """
    places = [place for name in sorted(shard_names) if (place := shard_place(name)) is not None]
    units = CommittedUnits(objects, manifest)
    for _ in range(MAX_SWAP_TRIES):
        result = compact(objects, manifest, ids, reading)
        if result.not_removed:
            what = f"{objects.uri}: garbage stays until `verify --repair`: {result.not_removed}"
            warnings.warn(what, StoreWarning, stacklevel=2)
        if result.not_indexed:
            what = f"{objects.uri}: record ids are looked up in the shards: {result.not_indexed}"
            warnings.warn(what, StoreWarning, stacklevel=2)
        units.refresh()
        dropped = [
            DroppedAttempt(place.unit_id, place.attempt)
            for place in places
            if (found := units.compacted.find(place.unit_index, place.unit_id)) and found[1] == place.attempt
        ]
        if not dropped:
            over = set(units.pointer.dropped)
            return [one.unit_id for one in places if DroppedAttempt(one.unit_id, one.attempt) in over]
        if len(units.pointer.dropped) + len(dropped) > MAX_DROPPED:
            raise StoreChangedError(
                f"{objects.uri}: {len(dropped):,} units to un-commit, after {len(units.pointer.dropped):,} "
                f"before, are more than the {MAX_DROPPED:,} that {INDEX_NAME} can name; restore the shards "
                "from a copy, or take what is sound into a new store with `merge --where`"
            )
        pointer = dataclasses.replace(
            units.pointer,
            generation=units.pointer.generation + 1,
            dropped=(*units.pointer.dropped, *dropped),
        )
        # Whatever the answer: the next look at the index tells whether the attempts are dropped.
        swap_pointer(objects, units.pointer_etag, pointer)
    raise StoreChangedError(
        f"{objects.uri}: {MAX_SWAP_TRIES} attempts to replace {INDEX_NAME} lost to other processes; stop the "
        "job, then un-commit"
    )
