"""Random schedules of lost requests, lost replies, retries and second actors over what changes a store.

After each schedule: the store can be read, every unit whose commit was answered is there once, and
`verify` finds no error: no deleted record is handed out either, also where a writer or a deletion gave up.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable
from typing import Literal
from unittest.mock import patch

import numpy as np

from benchmarks.jobs.made_up_labels import MANIFEST, made_up_sequence
from benchmarks.schedules.lossy_objects import Fault, LossyBackend, Memory, objects_over
from logitstore.errors import ObjectStoreError, StoreChangedError
from logitstore.index.changes import compaction
from logitstore.index.changes.rebuild import rebuild_index
from logitstore.manifest.reading import MANIFEST_NAME, encode_manifest
from logitstore.records import LabeledSequence, Reject
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.garbage import repair
from logitstore.tools.purge import purge
from logitstore.tools.record_ids import make_missing_ids
from logitstore.tools.verify import verify_store

Harm = Literal["lost", "twice"]
"""A unit whose commit was answered is lost; any unit is there twice."""

NUM_UNITS = 40
FAULT_SHARE = 0.15


class HarmError(AssertionError):
    """What a schedule did to a unit."""

    def __init__(self, harm: Harm) -> None:
        super().__init__(f"a unit is {harm}" if harm == "lost" else f"a unit is there {harm}")
        self.harm: Harm = harm


@functools.cache
def unit_of(unit_index: int) -> tuple[str, list[LabeledSequence]]:
    sequence = made_up_sequence(f"record-{unit_index}", 8, np.random.default_rng(unit_index))
    return f"unit-{unit_index:04d}", [sequence]


class Schedule:
    """Two actors on one store, the second acting in the middle of what the first does."""

    def __init__(self, seed: int, operations: tuple[str, ...]) -> None:
        self.rng = random.Random(seed)
        self.operations = operations
        self.memory = Memory()
        self.answered: Counter[str] = Counter()
        """Units whose commit was answered and that were not un-committed since."""
        self.taken_out: Counter[str] = Counter()
        self.deleted: set[str] = set()
        """Records whose deletion was answered."""
        self._nested = False
        self.first = LossyBackend(self.memory, self.rng, FAULT_SHARE, self._second_acts)
        self.second = LossyBackend(self.memory, self.rng, FAULT_SHARE)
        self.clean = objects_over(LossyBackend(self.memory, self.rng, 0.0))

    def run(self, num_steps: int = 40) -> None:
        self.clean.put(MANIFEST_NAME, encode_manifest(MANIFEST))
        LogitStore._begin(self.clean, MANIFEST)
        stores = [LogitStore(objects_over(backend), MANIFEST) for backend in (self.first, self.second)]
        self.second_store = stores[1]
        for _ in range(num_steps):
            self._act(stores[0], self.rng.choice(self.operations))

    def check(self) -> None:
        store = LogitStore._begin(self.clean, MANIFEST)
        committed = [entry.unit_id for entry in store.shards()]
        _require(len(committed) == len(set(committed)), "twice")
        _require(set(self.answered) <= set(committed), "lost")
        findings = verify_store(store, grace_sec=-10)
        if "rebuild" in self.operations and findings.errors:
            # A rebuild that failed may leave a segment with shards of dead writers: told, with this remedy.
            assert {problem.kind for problem in findings.errors} == {"index_lost"}
            rebuild_index(store.objects, MANIFEST, None)
            store = LogitStore._begin(self.clean, MANIFEST)
            committed = [entry.unit_id for entry in store.shards()]
            _require(set(self.answered) <= set(committed), "lost")
            findings = verify_store(store, grace_sec=-10)
        assert [str(problem) for problem in findings.errors] == []
        if "rebuild" not in self.operations:  # which knows no rejects of a shard that nothing names
            assert len(store.rejects()) == len(committed)
        assert self.deleted.isdisjoint(sequence.record_id for sequence in store.iter_sequences())
        _check_lookup(store)
        store.compact()
        assert [entry.unit_id for entry in store.shards()] == committed
        make_missing_ids(store)
        _check_lookup(store)
        repair(store, verify_store(store, grace_sec=-10), remove_most=True)
        assert [str(problem) for problem in verify_store(store).errors] == []
        assert set(store.objects.list("shards/")) >= {entry.name for entry in store.shards()} - {""}

    def _second_acts(self, fault: Fault) -> None:
        """Mostly while the first waits for a lost reply: the time between two tries is long."""
        if self._nested or self.rng.random() < (0.985 if fault == "none" else 0.2):
            return
        self._nested = True
        try:
            for _ in range(self.rng.randrange(1, 7)):
                self._act(self.second_store, self.rng.choice(sorted(set(self.operations))))
        finally:
            self._nested = False

    def _act(self, store: LogitStore, operation: str) -> None:
        actions: dict[str, Callable[[LogitStore], None]] = {
            "commit": self._commit,
            "compact": lambda store: _ignore(store.compact()),
            "repair": lambda store: _ignore(
                repair(store, verify_store(store, grace_sec=-10), remove_most=True)
            ),
            "uncommit": self._uncommit,
            "delete": self._delete,
            "purge": lambda store: _ignore(purge(store)),
            "rebuild": lambda store: _ignore(rebuild_index(store.objects, MANIFEST, None)),
        }
        # After a failure the outcome is unknown: what must hold whatever it was is checked at the end.
        with contextlib.suppress(ObjectStoreError, StoreChangedError):
            actions[operation](store)

    def _commit(self, store: LogitStore) -> None:
        unit_index = self.rng.randrange(NUM_UNITS)
        unit_id, sequences = unit_of(unit_index)
        rejects = [Reject("in.jsonl", unit_index, None, "bad", "invalid_json")]
        for _ in range(3):
            before = self.taken_out[unit_id]
            try:
                store.commit_unit(unit_id, unit_index, sequences, rejects, seconds=1.0, worker="w")
            except ObjectStoreError:
                continue
            if self.taken_out[unit_id] == before:
                self.answered[unit_id] += 1
            return

    def _delete(self, store: LogitStore) -> None:
        unit_id, sequences = unit_of(self.rng.randrange(NUM_UNITS))
        delete_records(store, frozenset({sequences[0].record_id}), f"unit {unit_id}")
        self.deleted.add(sequences[0].record_id)

    def _uncommit(self, store: LogitStore) -> None:
        store.refresh()
        entries = list(store.shards())
        if not entries:
            return
        entry = self.rng.choice(entries)
        for moment in range(2):
            self.answered.pop(entry.unit_id, None)
            self.taken_out[entry.unit_id] += 1
            if moment == 0:
                try:
                    store.uncommit([entry.name])
                except (ObjectStoreError, StoreChangedError):
                    self.answered.pop(entry.unit_id, None)
                    self.taken_out[entry.unit_id] += 1
                    raise


def _check_lookup(store: LogitStore) -> None:
    """What the id indexes say is what the shards hold."""
    everything = [sequence.record_id for sequence in store.iter_sequences()]
    names = [unit_of(unit_index)[1][0].record_id for unit_index in range(NUM_UNITS)]
    found = LogitStore(store.objects, MANIFEST).find(names)
    assert {name: len(some) for name, some in found.items()} == {
        name: everything.count(name) for name in names
    }


def _require(holds: bool, harm: Harm) -> None:
    if not holds:
        raise HarmError(harm)


def _ignore(_: object) -> None:
    """An operation whose answer does not matter here."""


MIXES = {
    "as a job": ("commit",) * 8 + ("compact",),
    "with repair": ("commit", "commit", "compact", "repair"),
    "with un-committing": ("commit", "commit", "compact", "repair", "uncommit"),
    "with rebuilding": ("commit", "commit", "compact", "rebuild"),
    "with deleting": ("commit", "commit", "commit", "compact", "repair", "uncommit", "delete", "purge"),
}


def run_schedule(mix: str, seed: int) -> int:
    """The faults that struck. Raises HarmError, or what else went wrong in the schedule or after it."""
    # With few units most compactions would merge everything; a low factor keeps several segments.
    with patch.object(compaction, "MERGE_FACTOR", seed % 3):
        schedule = Schedule(seed, MIXES[mix])
        schedule.run()
        schedule.check()
    return schedule.first.num_faults + schedule.second.num_faults
