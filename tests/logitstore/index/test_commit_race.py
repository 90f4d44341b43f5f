"""Several processes write the same units while others compact: one record per unit, nothing lost."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest

from logitstore.errors import StoreChangedError
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.random_labels import make_manifest, make_unit

NUM_UNITS = 10
NUM_WRITERS = 3


def _write_all(place: Place, writer: int, barrier, queue) -> None:
    store = LogitStore.open(place.uri, storage_options=place.storage_options)
    won: list[int] = []
    for unit_index in range(NUM_UNITS):
        unit_id, sequences = make_unit(unit_index, 1)
        barrier.wait(60)
        entry, mine = store.commit_unit(unit_id, unit_index, sequences, seconds=0, worker=f"writer-{writer}")
        assert mine == (entry.worker == f"writer-{writer}")
        won += [unit_index] if mine else []
    queue.put((writer, won))


def _compact_until(place: Place, stop) -> None:
    store = LogitStore.open(place.uri, storage_options=place.storage_options)
    while not stop.wait(0.02):
        store.compact()


@pytest.mark.slow
def test_one_record_per_unit(place: Place) -> None:
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitstore.store", "tests.logitstore.random_labels"])
    barrier, queue, stop = context.Barrier(NUM_WRITERS), context.Queue(), context.Event()
    writers = [
        context.Process(target=_write_all, args=(place, index, barrier, queue))
        for index in range(NUM_WRITERS)
    ]
    compactors = [context.Process(target=_compact_until, args=(place, stop)) for _ in range(2)]
    for process in [*writers, *compactors]:
        process.start()
    wins = dict(queue.get(timeout=90) for _ in writers)
    stop.set()
    for process in [*writers, *compactors]:
        process.join(30)
        assert process.exitcode == 0

    store.refresh()
    entries = list(store.shards())
    assert [entry.unit_index for entry in entries] == list(range(NUM_UNITS))
    assert sorted(unit for units in wins.values() for unit in units) == list(range(NUM_UNITS))
    for entry in entries:
        assert entry.unit_index in wins[int(entry.worker.removeprefix("writer-"))]
    # A loser removes its own shard; what is left is exactly what is committed.
    assert store.objects.list("shards/") == [entry.name for entry in entries]
    expected = [make_unit(index, 1)[1][0].record_id for index in range(NUM_UNITS)]
    assert [sequence.record_id for sequence in store.iter_sequences()] == expected
    digest = store.digest
    store.compact()
    assert (store.digest, store.objects.list("commits/")) == (digest, [])


def test_a_record_put_after_compaction_has_lost(place: Place) -> None:
    """The put itself succeeds, as compaction removed the first record; the index decides."""
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    late = LogitStore.open(place.uri, storage_options=place.storage_options)
    unit_id, sequences = make_unit(0)
    first, _ = store.commit_unit(unit_id, 0, sequences, seconds=0, worker="first")
    store.compact()
    entry, won = late.commit_unit(unit_id, 0, sequences, seconds=0, worker="late")
    assert (entry, won) == (first, False)
    assert store.objects.list("commits/") == []
    assert store.objects.list("shards/") == [first.name]


def test_a_late_record_left_by_a_dead_writer_is_not_read(place: Place) -> None:
    """The writer died between its put and its look at the index."""
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    unit_id, sequences = make_unit(0)
    first, _ = store.commit_unit(unit_id, 0, sequences, seconds=0, worker="first")
    record = store.objects.get("commits/unit-0000.json")
    store.compact()
    store.objects.put("commits/unit-0000.json", record.replace(b'"first"', b'"ghost"'))
    reader = LogitStore.open(place.uri, storage_options=place.storage_options)
    assert list(reader.shards()) == [first]
    rival, won = reader.commit_unit(unit_id, 0, sequences, seconds=0, worker="third")
    assert (rival, won) == (first, False)
    assert reader.compact().num_late == 1
    assert store.objects.list("commits/") == []


def test_a_unit_of_another_plan_leaves_nothing(place: Place) -> None:
    """Its place is taken: refused before anything is written, or taken back where the index tells later."""
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    stale = LogitStore.open(place.uri, storage_options=place.storage_options)
    first, _ = store.commit_unit("unit-a", 0, make_unit(0)[1], seconds=0, worker="w")
    with pytest.raises(
        StoreChangedError, match="unit index 0 is unit-a in the store and would be unit-b now"
    ):
        store.commit_unit("unit-b", 0, make_unit(1)[1], seconds=0, worker="w")
    store.compact()
    with pytest.raises(
        StoreChangedError, match="unit index 0 is unit-a in the store and would be unit-b now"
    ):
        stale.commit_unit("unit-b", 0, make_unit(1)[1], seconds=0, worker="w")
    assert store.objects.list("commits/") == []
    assert store.objects.list("shards/") == [first.name]
    assert list(LogitStore.open(place.uri, storage_options=place.storage_options).shards()) == [first]


def test_a_writer_whose_index_is_gone_ends(local_place: Place) -> None:
    """As when somebody deletes the store below a running job."""
    store = LogitStore.create(local_place.uri, make_manifest())
    store.commit_unit("unit-a", 0, make_unit(0)[1], seconds=0, worker="w")
    store.compact()
    shutil.rmtree(local_place.uri)
    with pytest.raises(StoreChangedError, match=r"index\.json was there and is gone"):
        store.commit_unit("unit-b", 1, make_unit(1)[1], seconds=0, worker="w")


def test_a_lost_reply_is_not_a_lost_race(local_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried PUT finds its own record: the attempt in it tells that it is its own."""
    store = LogitStore.create(local_place.uri, make_manifest())
    put_if_absent = store.objects.put_if_absent

    def reply_lost(name: str, data: bytes) -> bool:
        put_if_absent(name, data)
        return False

    monkeypatch.setattr(store.objects, "put_if_absent", reply_lost)
    unit_id, sequences = make_unit(0)
    entry, won = store.commit_unit(unit_id, 0, sequences, seconds=0, worker="w")
    assert won
    assert Path(local_place.uri, entry.name).exists()
