"""Faults of the protocol, planted on purpose: orders of two actors that find none of them prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.schedules.lossy_objects import LossyBackend
from logitstore import committed_store
from logitstore.errors import StoreChangedError
from logitstore.index.changes import committing, compaction
from logitstore.index.changes.compaction import CompactionResult
from logitstore.index.commits import CommitRecord, shard_place
from logitstore.index.committed import CommittedUnits
from logitstore.index.deletions import DeletedSequences
from logitstore.index.ids.building import IdBuilder
from logitstore.index.pointer import IndexPointer, encode_pointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.store import LogitStore
from logitstore.tools.deletion import _Search
from logitstore.unit_store import UnitStore
from tests.logitstore.index.interleavings import TurnBackend


@dataclass(frozen=True, slots=True)
class Found:
    """Where a planted fault is found."""

    scenario: str
    harm: str
    """What is said of it, as a regular expression."""
    num_changes: int = 1
    """Of turn, which it takes."""
    faults: bool = False
    """Whether it takes a lost reply."""


def index_before_records(patched: pytest.MonkeyPatch) -> None:
    def refresh(self: CommittedUnits) -> None:
        while not (self._read_index() and self._read_records(self._list_records())):
            pass
        self._all = None

    patched.setattr(CommittedUnits, "refresh", refresh)


def commits_that_overwrite(patched: pytest.MonkeyPatch) -> None:
    def put(self: LossyBackend, name: str, data: bytes) -> bool:
        return self._change(lambda: self._write(name, data))

    patched.setattr(TurnBackend, "put_if_absent", put)


def deletions_unseen_in_the_tail(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(CommittedUnits, "deleted_in_tail", lambda _: [])


def writer_that_does_not_look_at_the_index(patched: pytest.MonkeyPatch) -> None:
    def winner(objects: Objects, units: CommittedUnits, record: CommitRecord, name: str, *, won: bool):
        standing = record if won else committing._record_at(objects, units, name)
        assert standing is not None
        units.add(standing)
        return standing

    patched.setattr(committing, "_winner", winner)


def writer_that_does_not_look_at_deletions(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(UnitStore, "_shows_deleted", lambda *_: False)


def records_missed_where_compaction_took_them(patched: pytest.MonkeyPatch) -> None:
    read = CommittedUnits._read_records

    def ignore(self: CommittedUnits, listed: list[ObjectInfo]) -> bool:
        read(self, listed)
        return True

    patched.setattr(CommittedUnits, "_read_records", ignore)


def indexes_that_overwrite(patched: pytest.MonkeyPatch) -> None:
    def put(self: LossyBackend, name: str, data: bytes, etag: str) -> bool:
        return self._change(lambda: self._write(name, data))

    patched.setattr(TurnBackend, "put_if_match", put)


def records_removed_before_the_index_has_them(patched: pytest.MonkeyPatch) -> None:
    swap = compaction.swap_pointer

    def swap_late(objects: Objects, etag: str | None, pointer: IndexPointer) -> bool:
        objects.delete_many(objects.list("commits/"))
        return swap(objects, etag, pointer)

    patched.setattr(compaction, "swap_pointer", swap_late)


def segment_removed_after_a_swap_that_seems_lost(patched: pytest.MonkeyPatch) -> None:
    def swap(objects: Objects, etag: str | None, pointer: IndexPointer) -> bool:
        assert etag is not None
        if objects.put_if_match("index.json", encode_pointer(pointer), etag):
            return True
        objects.delete_many(compaction._names(pointer.segments[-1]))
        return False

    patched.setattr(compaction, "swap_pointer", swap)


def segments_removed_without_a_fence(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(LogitStore, "fence_compactors", LogitStore.refresh)


def deletion_that_does_not_look_again(patched: pytest.MonkeyPatch) -> None:
    replace_index, living = LogitStore.replace_index, _Search.living
    looked: list[_Search] = []

    def replace_and_end(self: LogitStore, pointer: IndexPointer, etag: str | None) -> bool:
        patched.setattr(self, "compact", lambda: CompactionResult(0, 0, 0, 0), raising=False)
        return replace_index(self, pointer, etag)

    def look_once(self: _Search) -> list[DeletedSequences]:
        if self in looked:
            return []
        looked.append(self)
        return living(self)

    patched.setattr(_Search, "living", look_once)
    patched.setattr(LogitStore, "replace_index", replace_and_end)


def attempts_told_apart_by_their_unit(patched: pytest.MonkeyPatch) -> None:
    """Un-committing drops whatever attempt the unit has by now."""
    uncommit = committed_store.uncommit

    def uncommit_any(
        objects: Objects, manifest: str, names: set[str], ids: IdBuilder | None, reading: TailDeletions | None
    ) -> list[str]:
        units = CommittedUnits(objects, manifest, reading)
        units.refresh()
        now = {entry.unit_id: entry.name for entry in units.entries()}
        places = [place for name in names if (place := shard_place(name))]
        return uncommit(objects, manifest, {now[place.unit_id] for place in places}, ids, reading)

    patched.setattr(committed_store, "uncommit", uncommit_any)


def commits_that_all_end_in_an_error(patched: pytest.MonkeyPatch) -> None:
    commit = LogitStore.commit_unit

    def commit_unit(self: LogitStore, *given: Any, seconds: float, worker: str) -> None:
        commit(self, *given, seconds=seconds, worker=worker)
        raise StoreChangedError("no commit ends well")

    patched.setattr(LogitStore, "commit_unit", commit_unit)


PLANTED: dict[Callable[[pytest.MonkeyPatch], None], Found] = {
    index_before_records: Found("a reader and a compaction", "misses"),
    commits_that_overwrite: Found("two writers", "does not count|both won"),
    deletions_unseen_in_the_tail: Found(
        "a writer and a deletion", "a deleted record is shown", num_changes=2
    ),
    writer_that_does_not_look_at_the_index: Found("a writer and a faster one", "does not count"),
    writer_that_does_not_look_at_deletions: Found("a writer and a deletion", "saw the other"),
    records_missed_where_compaction_took_them: Found("a reader and a compaction", "misses"),
    indexes_that_overwrite: Found("a compaction and a commit", "lost"),
    records_removed_before_the_index_has_them: Found(
        "a compaction and a commit", "a unit is lost", num_changes=2
    ),
    segment_removed_after_a_swap_that_seems_lost: Found(
        "two compactions", "does not exist, which index.json names", faults=True
    ),
    segments_removed_without_a_fence: Found(
        "a compaction and a repair", "does not exist, which index.json names"
    ),
    deletion_that_does_not_look_again: Found("a writer and a deletion", "saw the other", num_changes=2),
    attempts_told_apart_by_their_unit: Found("un-committing twice", "lost"),
    commits_that_all_end_in_an_error: Found("two writers", "no commit ends well"),
}
