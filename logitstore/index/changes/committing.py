"""Making one unit's shard visible: of all writers of the unit exactly one wins, and all learn who."""

from __future__ import annotations

import contextlib

from logitstore.errors import CorruptManifestError, ObjectStoreError, StoreChangedError
from logitstore.index.commits import CommitRecord, encode_commit
from logitstore.index.committed import CommittedUnits
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import Objects


def commit(objects: Objects, units: CommittedUnits, record: CommitRecord) -> tuple[ShardEntry, bool] | None:
    """The entry that counts and whether it is this record's; None if the unit is in a new round by now.

    The shard that `record` names is there already; it is removed again where it does not count. Raises
    ObjectStoreError if the outcome is unknown: then commit again, under another attempt.
    """
    name = units.record_name(record.shard.unit_id)
    won = objects.put_if_absent(name, encode_commit(record))
    winner = _winner(objects, units, record, name, won=won)
    if winner is not None and winner.attempt == record.attempt:
        return winner.shard, True
    _discard(objects, record, name, won=won)
    return None if winner is None else (winner.shard, False)


def _discard(objects: Objects, record: CommitRecord, name: str, *, won: bool) -> None:
    """Remove what this call wrote, which can never count: its round of the unit is another's or over.

    `name` is of that round, so no record that counts can lie there when the unit is in the index or in a
    later round.
    """
    with contextlib.suppress(ObjectStoreError):  # what stays is garbage, and `verify --repair` finds it
        objects.delete_many([*([record.shard.name] if record.shard.name else []), *([name] if won else [])])


def _winner(
    objects: Objects, units: CommittedUnits, record: CommitRecord, name: str, *, won: bool
) -> CommitRecord | None:
    """The record that counts for the unit, after this call's put succeeded or not; None in a new round.

    The index, read last, decides: it is published before compaction removes a record, so that even a put
    that succeeds after the removal finds the unit there.
    """
    standing = record if won else _record_at(objects, units, name)
    units.refresh_index()
    try:
        found = units.find_in_index(record.shard.unit_index, record.shard.unit_id)
    except StoreChangedError:
        _discard(objects, record, name, won=won)
        raise
    if found is not None:
        entry, attempt = found
        return CommitRecord(attempt=attempt, manifest=record.manifest, shard=entry)
    if name != units.record_name(record.shard.unit_id):
        return None
    if standing is None:
        raise CorruptManifestError(
            f"{name} was there, is gone, and the index lacks its unit; something else than this software "
            "deleted it: label the unit again"
        )
    units.add(standing)
    return standing


def _record_at(objects: Objects, units: CommittedUnits, name: str) -> CommitRecord | None:
    (data,) = objects.get_many([name])
    return None if data is None else units.decode_record(data, name)
