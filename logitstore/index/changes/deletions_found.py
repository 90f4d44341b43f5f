"""Deletions in a rebuilt index: what was taken down once does not come back, whoever left it there."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from logitstore.errors import CorruptManifestError
from logitstore.index import segments as index_segments
from logitstore.index.deletions import (
    DELETED_PREFIX,
    MAX_TOMBSTONE_BYTES,
    DeletedRecords,
    DeletedSequences,
    Deletions,
    Tombstone,
    decode_tombstone,
    read_tombstone,
    write_tombstone,
)
from logitstore.index.pointer import IndexPointer, TombstoneInfo, valid_tombstone_name
from logitstore.objects.opening import Objects

REASON = "places found by rebuild-index"


@dataclass(frozen=True, slots=True)
class FoundDeletions:
    """The tombstones that lie in a store."""

    infos: tuple[TombstoneInfo, ...]
    tombstones: tuple[Tombstone, ...]

    def records(self, *, has_parts: bool) -> DeletedRecords:
        return DeletedRecords(Deletions(self.tombstones).records, has_parts)


def find_deletions(objects: Objects, manifest: str, pointer: IndexPointer | None) -> FoundDeletions:
    """All deletions of the store, also those that a process which died had put and not named.

    Raises CorruptManifestError and ObjectNotFoundError for one that cannot be read.
    """
    infos = list(pointer.deleted) if pointer is not None else []
    tombstones = [read_tombstone(objects, info, manifest) for info in infos]
    named = {info.name for info in infos}
    for name in objects.list(DELETED_PREFIX):
        if not valid_tombstone_name(name) or name in named:
            continue
        data = objects.get(name, max_bytes=MAX_TOMBSTONE_BYTES)
        try:
            tombstones.append(decode_tombstone(data, manifest, what=name))
        except CorruptManifestError as error:
            raise CorruptManifestError(
                f"{objects.uri}: {error}. It says what was deleted: restore it from a copy of the store, or "
                "remove it, and what it says is handed out again"
            ) from error
        infos.append(TombstoneInfo(name, len(data), index_segments.checksum(data)))
    return FoundDeletions(tuple(infos), tuple(tombstones))


def deletions_for(
    objects: Objects,
    manifest: str,
    found: FoundDeletions,
    read: Mapping[str, DeletedSequences | None],
    attempts: frozenset[str],
) -> tuple[TombstoneInfo, ...]:
    """The tombstones that a rebuilt index of these attempts names.

    `read` has the deleted sequences of each attempt whose shard was read, by the deleted records' digests;
    of others the tombstones are believed. Where these say the same, they stay as they are. Otherwise, as
    several may say the same place, all places go into one new tombstone.
    """
    said = [unit for one in found.tombstones for unit in one.units if unit.attempt in attempts]
    units = [unit for attempt, unit in read.items() if unit is not None and attempt in attempts]
    units += [unit for unit in said if unit.attempt not in read]
    if _is_same(units, said):
        return found.infos
    infos = [_without_places(objects, *one) for one in zip(found.infos, found.tombstones, strict=True)]
    if units:
        together = Tombstone(manifest, REASON, time.time(), records="", units=tuple(units))
        infos.append(write_tombstone(objects, together, secrets.token_hex(8)))
    return tuple(infos)


def _is_same(found: list[DeletedSequences], said: list[DeletedSequences]) -> bool:
    """Whether the tombstones say every place that was found, and none twice."""
    places = sorted((one.attempt, place) for one in said for place in one.places)
    return places == sorted({(one.attempt, place) for one in found for place in one.places})


def _without_places(objects: Objects, info: TombstoneInfo, tombstone: Tombstone) -> TombstoneInfo:
    if not tombstone.units:
        return info
    return write_tombstone(objects, dataclasses.replace(tombstone, units=()), secrets.token_hex(8))
