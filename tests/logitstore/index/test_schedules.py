"""Random schedules of faults over what changes a store (`benchmarks/schedules/store_schedules.py`), and over what makes one.

They reach deep, by many operations and faults; `test_interleavings.py` tries every order of two.
"""

from __future__ import annotations

import random

import pytest

from benchmarks.jobs.made_up_labels import MANIFEST
from benchmarks.schedules.lossy_objects import Fault, LossyBackend, Memory, objects_over
from benchmarks.schedules.store_schedules import MIXES, NUM_UNITS, run_schedule, unit_of
from logitstore.errors import ObjectStoreError
from logitstore.exchange.importing import Origin, Source, import_source
from logitstore.exchange.merge import merge_stores
from logitstore.objects import opening
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store

QUICK_SEEDS, SLOW_SEEDS = 1, 30


@pytest.mark.parametrize("mix", MIXES)
def test_some_schedules(mix: str) -> None:
    run_schedules(mix, range(QUICK_SEEDS))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mix", MIXES)
def test_many_schedules(mix: str) -> None:
    run_schedules(mix, range(QUICK_SEEDS, SLOW_SEEDS))


def run_schedules(mix: str, seeds: range) -> None:
    bad: dict[int, str] = {}
    num_faults = 0
    for seed in seeds:
        try:
            num_faults += run_schedule(mix, seed)
        except Exception as error:  # noqa: BLE001 - every seed is tried, the bad ones are listed
            bad[seed] = f"{type(error).__name__}: {error!s:.300}"
    assert bad == {}
    assert num_faults > 10 * len(seeds), "schedules without faults prove nothing"


def _source(num_units: int) -> Source:
    sequences = (sequence for unit_index in range(num_units) for sequence in unit_of(unit_index)[1])
    return Source("test", "memory", MANIFEST.labels, sequences, None)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["merge", "import"])
def test_merges_and_imports_that_are_repeated(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is repeated until it ends; a second one of the same kind runs in the middle of it."""
    monkeypatch.setattr("logitstore.exchange.importing.UNIT_ROWS", 30)
    source = LogitStore(objects_over(LossyBackend(Memory(), random.Random(0), 0.0)), MANIFEST)
    for unit_index in range(NUM_UNITS):
        unit_id, sequences = unit_of(unit_index)
        source.commit_unit(unit_id, unit_index, sequences, seconds=0, worker="w")
    expected = sorted(sequence.record_id for sequence in source.iter_sequences())
    codebooks = source.codebooks()

    def run_once() -> LogitStore:
        if what == "merge":
            return merge_stores([source], "memory://target")
        return import_source(_source(NUM_UNITS), "memory://target", origin=Origin(), codebooks=codebooks)

    digests = set()
    for seed in range(60):
        rng, memory = random.Random(seed), Memory()
        nested = [False]

        def meanwhile(_: Fault) -> None:
            if nested[0] or rng.random() < 0.97:  # noqa: B023
                return
            nested[0] = True  # noqa: B023
            try:
                run_once()
            except ObjectStoreError:
                pass
            finally:
                nested[0] = False  # noqa: B023

        backend = LossyBackend(memory, rng, 0.05, meanwhile)
        monkeypatch.setattr(opening, "_open_backend", lambda *_: backend)  # noqa: B023
        for _ in range(200):
            try:
                target = run_once()
                break
            except ObjectStoreError:
                continue
        clean = LogitStore(objects_over(LossyBackend(memory, rng, 0.0)), target.manifest)
        assert sorted(sequence.record_id for sequence in clean.iter_sequences()) == expected
        assert verify_store(clean).errors == []
        digests.add(tuple(clean.shards().unit_ids()))
    assert len(digests) == 1, "however often it was interrupted, the same units come out"
