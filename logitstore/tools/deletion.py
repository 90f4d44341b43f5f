"""`delete`: records are taken down, at once for all readers. `purge` (beside this) removes their bytes."""

from __future__ import annotations

import dataclasses
import secrets
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from logitstore.errors import (
    CorruptManifestError,
    ObjectNotFoundError,
    StoreChangedError,
    StoreExistsError,
    UnsuitablePlaceError,
)
from logitstore.index.commits import place_of
from logitstore.index.deletions import DeletedSequences, Tombstone, write_tombstone
from logitstore.inputs.identity import digest_of
from logitstore.inputs.parts import parent_id
from logitstore.job_objects import ACTIVE_STATES, STATUS_NAME
from logitstore.job_parsing import parse_status
from logitstore.manifest.fields import RECORD_PARTS, ShardEntry
from logitstore.manifest.reading import manifest_hash
from logitstore.store import LogitStore

MAX_SWAP_TRIES = 20
THREADS = 8
ACTIVE_SEC = 120.0
"""A job that wrote its status so lately is at work."""
MOST_NAMED, MOST_SOUGHT = 10, 1_000
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class DeletionResult:
    """What a deletion took out."""

    num_records: int
    """Records named."""
    num_sequences: int
    """Their sequences that were in the store."""
    num_units: int
    num_absent: int
    """Records named that have no labels here; they are noted all the same, and will get none."""
    num_before: int
    """Records named that were deleted, or noted, before."""
    tombstone: str
    """Name of the object that says so; "" if nothing new was said."""
    absent: tuple[str, ...] = ()
    """The first of those without labels here."""
    written_otherwise: tuple[str, ...] = ()
    """Records here that are not deleted, and differ from these in spaces around them or in the form of
    Unicode alone (an accent as part of its letter, or apart)."""


def delete_records(
    store: LogitStore, record_ids: frozenset[str], reason: str, *, progress: Progress | None = None
) -> DeletionResult:
    """Take records out of the store, for all readers at once.

    The bytes stay until `purge`. With a record of the input all of its parts go, also those that it gets
    later. Raises StoreChangedError while a job labels the store or if other processes keep replacing the
    index.
    """
    if not reason.strip():
        raise ValueError("a deletion needs a reason, by which others will know why; give --reason TEXT")
    refuse_running_job(store)
    search = _Search(store, record_ids, progress)
    before = store.deletions.records
    found: list[DeletedSequences] = []
    name = ""
    for _ in range(MAX_SWAP_TRIES):
        taken_out = store.compact().taken_out
        if name:  # by writers that did not know of this deletion
            found += taken_out
        pointer, etag = store.index_pointer()
        units = search.living()
        new = sorted({digest_of(one).hex() for one in search.named} - store.deletions.records)
        if not new and not units:
            earlier = {one for one in record_ids if digest_of(one).hex() in before}
            return _result(store, search, earlier, found, name)
        tombstone = Tombstone(
            manifest=manifest_hash(store.manifest),
            reason=reason.strip(),
            deleted_sec=time.time(),
            records="".join(new),
            units=tuple(units),
        )
        info = write_tombstone(store.objects, tombstone, secrets.token_hex(8))
        changed = dataclasses.replace(
            pointer, generation=pointer.generation + 1, deleted=(*pointer.deleted, info)
        )
        # A writer that read the index before this and put its record meanwhile is found by the next look.
        try:
            swapped = store.replace_index(changed, etag)
        except UnsuitablePlaceError:
            store.objects.delete(info.name)
            raise
        if swapped:
            found += units
            name = name or info.name
    raise StoreChangedError(
        f"{store.uri}: {MAX_SWAP_TRIES} attempts to replace the index lost to other processes; stop what "
        "works on "
        "the store, then delete"
    )


def _result(
    store: LogitStore, search: _Search, earlier: set[str], found: list[DeletedSequences], tombstone: str
) -> DeletionResult:
    """What was deleted in `found`, where those of `earlier` had been deleted before."""
    absent = sorted(search.record_ids - search.met - earlier)
    return DeletionResult(
        num_records=len(search.record_ids),
        num_sequences=sum(len(unit.places) for unit in found),
        num_units=len({unit.attempt for unit in found}),
        num_absent=len(absent),
        num_before=len(earlier),
        tombstone=tombstone,
        absent=tuple(absent[:MOST_NAMED]),
        written_otherwise=_written_otherwise(store, absent),
    )


def _written_otherwise(store: LogitStore, absent: list[str]) -> tuple[str, ...]:
    """As DeletionResult says it, of the first MOST_SOUGHT."""
    names = {form for one in absent[:MOST_SOUGHT] for form in _other_forms(one)} - set(absent)
    living = [one for one in names if digest_of(one).hex() not in store.deletions.records]
    if not living:
        return ()
    search = _Search(store, frozenset(living), None)
    search.living()
    return tuple(sorted(search.met & set(living))[:MOST_NAMED])


def _other_forms(record_id: str) -> set[str]:
    plain = record_id.strip()
    texts = (record_id, plain, f"{plain} ", f" {plain}")
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD") for text in texts}
    return {*texts, *forms} - {record_id}


def refuse_running_job(store: LogitStore) -> None:
    """Raise StoreChangedError if a job says that it is at work on the store."""
    try:
        status = parse_status(store.objects.get(STATUS_NAME))
    except ObjectNotFoundError:
        return
    except CorruptManifestError as error:
        raise StoreChangedError(
            f"{store.uri}: whether a job is at work here cannot be known: {error}. If none is, remove that "
            f"{STATUS_NAME}"
        ) from None
    try:
        updated = datetime.fromisoformat(status.updated)
    except ValueError:  # Of a version that did not say when it was at work.
        return
    updated = updated if updated.tzinfo else updated.replace(tzinfo=UTC)
    if status.state in ACTIVE_STATES and time.time() - updated.timestamp() < ACTIVE_SEC:
        raise StoreChangedError(
            f"{store.uri}: a job is at work here (its status of {status.updated} says {status.state}), "
            "and would "
            "commit labels of what is being deleted; stop it first"
        )


def refuse_to_bring_back(source: LogitStore, target: LogitStore) -> None:
    """Raise StoreExistsError if records were deleted from the target that it would get again."""
    if records := target.deletions.records - source.deletions.records:
        raise StoreExistsError(
            f"records were deleted from {target.uri} ({len(records):,}) and not from {source.uri}, and would "
            "come back; delete them there too, or write to another place"
        )


class _Search:
    """Where records and their parts are in a store, looked for again and again while it changes."""

    def __init__(self, store: LogitStore, record_ids: frozenset[str], progress: Progress | None) -> None:
        self._store, self.record_ids, self._progress = store, record_ids, progress
        self.named = record_ids
        """The ids, and those of their parts in the store."""
        self.met: set[str] = set()
        """Ids that have labels, of records and of parts."""
        self._looked: set[str] = set()
        """Shards whose parts are known."""

    def living(self) -> list[DeletedSequences]:
        """The sequences that are not deleted yet."""
        if RECORD_PARTS in self._store.manifest.features:
            self.named |= self._new_parts()
        store, shards = self._store, self._store.shards()
        places = store.lookup().shards_with(sorted(self.named))
        entries = [shards[place] for place in sorted(places)]
        units: list[DeletedSequences] = []
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda entry: _find_in(store, entry, self.named), entries)
            for done, (unit, met) in enumerate(found):
                if self._progress:
                    self._progress("shards", done, len(entries))
                self.met |= met | {parent_id(one) for one in met}
                if unit is not None:
                    units.append(unit)
        return units

    def _new_parts(self) -> set[str]:
        """Parts of the records, in shards that were not looked at before."""
        entries = [entry for entry in self._store.shards() if entry.name and entry.name not in self._looked]
        self._looked.update(entry.name for entry in entries)
        parts: set[str] = set()
        for entry in entries:
            with self._store.open_shard(entry, deleted=True) as reader:
                for block in range(reader.num_blocks):
                    names = reader.plain_columns(block).record_id
                    parts.update(name for name in names if parent_id(name) in self.record_ids)
        return parts


def _find_in(
    store: LogitStore, entry: ShardEntry, record_ids: frozenset[str]
) -> tuple[DeletedSequences | None, set[str]]:
    place = place_of(entry)
    gone = store.deletions.places(place.attempt)
    places: list[int] = []
    met: set[str] = set()
    num_rows = num_tokens = first = 0
    with store.open_shard(entry, deleted=True) as reader:
        for block in range(reader.num_blocks):
            plain = reader.plain_columns(block)
            for at, record_id in enumerate(plain.record_id):
                if record_id in record_ids:
                    met.add(record_id)
                    if first + at not in gone:
                        places.append(first + at)
                        num_rows += int(plain.num_rows[at])
                        num_tokens += int(plain.num_tokens[at])
            first += len(plain.record_id)
    unit = DeletedSequences(place.unit_id, place.attempt, tuple(places), num_rows, num_tokens)
    return (unit if places else None), met
