"""What changes a store, by two actors in every order with few changes of turn; faults planted on purpose are found."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from benchmarks.jobs.made_up_labels import MANIFEST
from benchmarks.schedules.lossy_objects import LossyBackend, Memory, objects_over
from benchmarks.schedules.store_schedules import unit_of
from logitstore.manifest.fields import ShardEntry
from logitstore.manifest.reading import MANIFEST_NAME, encode_manifest
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.garbage import repair
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from tests.logitstore.index.interleavings import (
    ACTORS,
    Actor,
    Names,
    Order,
    TurnBackend,
    orders,
    run_in_order,
)
from tests.logitstore.index.planted_faults import PLANTED

UNIT, OTHER = 0, 1
"""The unit that is fought over, and one that is in the index from the start."""
NOW_SEC = 1e9
RECORD = unit_of(UNIT)[1][0].record_id


@dataclass(frozen=True, slots=True)
class Scenario:
    """What two actors do, one after the other each, to a store in which the unit has gone so far."""

    begun: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]


SCENARIOS = {
    "two writers": Scenario((), ("commit",), ("commit",)),
    "a writer and a faster one": Scenario((), ("commit",), ("commit", "compact")),
    "a reader and a compaction": Scenario(("commit",), ("open",), ("compact",)),
    "two compactions": Scenario(("commit",), ("compact",), ("compact",)),
    "a compaction and a commit": Scenario(("commit other",), ("compact",), ("commit", "compact")),
    "a compaction and a repair": Scenario(("commit",), ("compact",), ("repair",)),
    "a writer and a repair": Scenario(("commit other",), ("commit",), ("compact", "repair")),
    "a writer and a deletion": Scenario((), ("commit",), ("delete",)),
    "a deletion and a writer": Scenario((), ("delete",), ("commit", "compact")),
    "a deletion and a compaction": Scenario(("commit",), ("delete",), ("compact",)),
    "two deletions": Scenario(("commit",), ("delete",), ("delete",)),
    "a purge and a writer": Scenario(("commit", "delete"), ("purge",), ("commit", "commit other")),
    "un-committing and a writer": Scenario(("commit", "compact"), ("uncommit",), ("commit",)),
    "a writer and un-committing": Scenario(("commit",), ("commit",), ("uncommit", "commit")),
    "un-committing twice": Scenario(("commit",), ("uncommit",), ("uncommit", "commit")),
}


class BrokenError(Exception):
    """An order after which something of the store is not as it must be."""


class World:
    """A store, and what its actors were told."""

    def __init__(self, data: dict[str, bytes], answers: list[tuple[ShardEntry, bool]]) -> None:
        self.memory = Memory()
        self.memory.data.update(data)
        self.memory.changed_sec.update(dict.fromkeys(data, NOW_SEC))
        self.clean = objects_over(LossyBackend(self.memory, random.Random(0), 0.0))
        self.answers = list(answers)
        """To commits: the entry that counts, and whether it is the caller's."""
        self.taken_back: set[str] = set()
        """Shards that somebody wanted un-committed, or purged."""
        self.is_deleted = False
        """Whether a deletion of the record was answered."""

    def act(self, store: LogitStore, operations: tuple[str, ...]) -> None:
        for operation in operations:
            getattr(self, operation.replace(" ", "_"))(store)

    def commit(self, store: LogitStore, unit_index: int = UNIT) -> None:
        unit_id, sequences = unit_of(unit_index)
        self.answers.append(store.commit_unit(unit_id, unit_index, sequences, seconds=1.0, worker="w"))

    def commit_other(self, store: LogitStore) -> None:
        self.commit(store, OTHER)

    def compact(self, store: LogitStore) -> None:
        store.compact()

    def open(self, store: LogitStore) -> None:
        before = {entry.unit_id for entry, _ in self.answers}
        opened = LogitStore(store.objects, MANIFEST)
        assert opened.committed_units() >= before, "a reader misses what was committed before it looked"

    def repair(self, store: LogitStore) -> None:
        repair(store, verify_store(store, grace_sec=-10), remove_most=True)

    def delete(self, store: LogitStore) -> None:
        delete_records(store, frozenset({RECORD}), "asked for")
        self.is_deleted = True

    def purge(self, store: LogitStore) -> None:
        self.taken_back |= {entry.name for entry in store.shards()}
        purge(store)

    def uncommit(self, store: LogitStore) -> None:
        names = [entry.name for entry in store.shards() if entry.unit_index == UNIT]
        self.taken_back |= set(names)
        store.uncommit(names)

    def told(self) -> tuple[object, ...]:
        """What its actors know, beside the objects."""
        answers = sorted((entry.unit_id, entry.name, mine) for entry, mine in self.answers)
        return tuple(answers), frozenset(self.taken_back), self.is_deleted

    def check(self, *, is_undisturbed: bool) -> None:
        store = LogitStore._begin(self.clean, MANIFEST)
        named = {entry.unit_id: entry.name for entry in store.shards()}
        assert len(named) == len(store.shards()), "a unit is there twice"
        for entry, _ in self.answers:
            assert entry.unit_id in named or entry.name in self.taken_back, "a unit is lost"
            if not self.is_deleted and not self.taken_back:
                assert entry.name == named[entry.unit_id], "a writer was told of a shard that does not count"
        winners = [
            entry.unit_id for entry, mine in self.answers if mine and entry.name not in self.taken_back
        ]
        assert self.is_deleted or len(winners) == len(set(winners)), "writers were told that both won"
        if self.is_deleted:
            assert RECORD not in {one.record_id for one in store.iter_sequences()}, (
                "a deleted record is shown"
            )
        if self.is_deleted and is_undisturbed:
            assert store._units.deleted_in_tail() == [], "neither writer nor deletion saw the other"
        assert [str(one) for one in verify_store(store, grace_sec=-10).errors] == []
        store.compact()
        repair(store, verify_store(store, grace_sec=-10), remove_most=True)
        assert [str(one) for one in verify_store(store, grace_sec=-10).errors] == []
        assert {entry.unit_id: entry.name for entry in store.shards()} == named


class Explorer:
    """Runs one scenario in all orders, and looks once at each end that they have."""

    def __init__(self, scenario: Scenario, names: Names) -> None:
        self._scenario, self._names = scenario, names
        self._seen: set[int] = set()
        self._begun = World({}, [])
        self._begun.clean.put(MANIFEST_NAME, encode_manifest(MANIFEST))
        self._begun.act(LogitStore._begin(self._begun.clean, MANIFEST), scenario.begun)

    def run(self, order: Order) -> tuple[int, int]:
        """The requests that each actor made."""
        world = World(self._begun.memory.data, self._begun.answers)
        world.is_deleted = self._begun.is_deleted
        self._names.begin_run()
        first = self._actor(world, ACTORS[0], self._scenario.first)
        second = self._actor(world, ACTORS[1], self._scenario.second)
        run_in_order(first, second, order)
        for actor in (first, second):
            if actor.unsure is not None and order.is_undisturbed:
                raise actor.unsure
        end = hash((frozenset(world.memory.data.items()), world.told(), order.is_undisturbed))
        if end not in self._seen:
            self._seen.add(end)
            world.check(is_undisturbed=order.is_undisturbed)
        return first.num_requests, second.num_requests

    def _actor(self, world: World, name: str, operations: tuple[str, ...]) -> Actor:
        backend = TurnBackend(world.memory)
        store = LogitStore(objects_over(backend), MANIFEST)
        backend.actor = Actor(name, functools.partial(world.act, store, operations))
        return backend.actor


def explore(name: str, num_changes: int = 2, *, faults: bool = False, every: int = 1) -> int:
    """Try every order, or every so-manieth; how many there were. Raises BrokenError for the first bad one."""
    names, order, tried = Names(), Order(0, "none", None), 0
    with patch("secrets.token_hex", names.draw), patch("time.time", return_value=NOW_SEC):
        explorer = Explorer(SCENARIOS[name], names)
        try:
            requests = explorer.run(order)
            for order in itertools.islice(orders(*requests, num_changes, faults=faults), 0, None, every):
                explorer.run(order)
                tried += 1
        except Exception as error:
            raise BrokenError(f"{name}, {order}: {error}") from error
    return tried


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_change_of_turn(name: str) -> None:
    assert explore(name, 1) > 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_changes_of_turn(name: str) -> None:
    """Some of them: all, with lost replies too, take minutes and are for whoever changes what is tested here."""
    assert explore(name, faults=True, every=83) > 1


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = PLANTED[fault]
    fault(monkeypatch)
    with pytest.raises(BrokenError, match=found.harm):
        explore(found.scenario, found.num_changes, faults=found.faults)
