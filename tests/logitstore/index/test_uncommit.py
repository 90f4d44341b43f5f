"""Units without a sound shard are taken out by an explicit step, labeled again, and never come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import StoreChangedError
from logitstore.index.changes import uncommit as uncommit_module
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tools.garbage import repair
from logitstore.tools.verify import verify_store
from tests.conftest import Place
from tests.logitstore.random_labels import make_manifest, make_unit

REJECT = Reject("input.jsonl", 7, "r7", "too long", "too_long")


def commit(store: LogitStore, unit_index: int, worker: str = "w", rejects=()) -> tuple[str, bool]:
    unit_id, sequences = make_unit(unit_index)
    entry, won = store.commit_unit(unit_id, unit_index, sequences, rejects, seconds=0, worker=worker)
    return entry.name, won


@pytest.fixture
def store(local_place: Place) -> LogitStore:
    """Four units, two of them in the index, each with a reject."""
    store = LogitStore.create(local_place.uri, make_manifest())
    for unit_index in range(4):
        commit(store, unit_index, rejects=[REJECT])
        if unit_index == 1:
            store.compact()
    return store


def damage(store: LogitStore, *unit_indexes: int) -> list[str]:
    names = [store.shards()[unit_index].name for unit_index in unit_indexes]
    for place, name in enumerate(names):
        path = Path(store.uri, name)
        path.unlink() if place % 2 else path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    return names


def test_what_its_compaction_left_undone_is_said(store: LogitStore) -> None:
    names = damage(store, 0, 3)
    with pytest.warns(StoreWarning, match=names[1]):
        assert store.uncommit(names) == ["unit-0000", "unit-0003"]


@pytest.mark.parametrize("unit_index", [0, 3], ids=["in the index", "in a record"])
def test_a_bad_unit_is_labeled_again(
    store: LogitStore, unit_index: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (bad,) = damage(store, unit_index)
    rival = LogitStore.open(store.uri)
    assert main(["uncommit", store.uri, "--bad", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"uncommitted": [f"unit-{unit_index:04d}"]}
    opened = LogitStore.open(store.uri)
    assert f"unit-{unit_index:04d}" not in opened.committed_units()
    assert len(opened.rejects()) == 3
    first, won = commit(opened, unit_index, "again", [REJECT])
    assert won
    assert commit(rival, unit_index, "rival") == (first, False)
    for _ in range(2):
        fresh = LogitStore.open(store.uri)
        assert [entry.unit_index for entry in fresh.shards()] == [0, 1, 2, 3]
        assert fresh.shards()[unit_index].worker == "again"
        assert len(fresh.rejects()) == 4
        findings = verify_store(fresh)
        assert findings.errors == []
        assert {info.name for info in findings.garbage} >= {bad}
        fresh.compact()
    repair(fresh, verify_store(fresh))
    assert not Path(store.uri, bad).exists()


def test_a_dead_record_never_comes_back(store: LogitStore) -> None:
    """Put again by a slow writer or a copy, under its old name, whatever is in the index then."""
    record, name = store.objects.get("commits/unit-0003.json"), store.shards()[3].name
    shard = store.objects.get(name)
    damage(store, 3)
    assert store.uncommit([name]) == ["unit-0003"]
    store.objects.put("commits/unit-0003.json", record)
    store.objects.put(name, shard)
    for _ in range(2):
        opened = LogitStore.open(store.uri)
        assert opened.committed_units() == {"unit-0000", "unit-0001", "unit-0002"}
        opened.compact()
    assert not store.objects.exists("commits/unit-0003.json")
    LogitStore.rebuild(store.uri)
    assert len(LogitStore.open(store.uri).shards()) == 3, "a rebuilt index leaves it out as well"
    assert verify_store(LogitStore.open(store.uri)).errors == []


def test_a_slow_deletion_of_the_old_record_does_not_meet_the_new_one(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compactor swapped, was suspended, and deletes its records after the unit was labeled again."""
    slow = LogitStore.open(store.uri)
    delete_many = slow.objects.delete_many

    def label_again_first(names) -> None:
        other = LogitStore.open(store.uri)
        if len(other.committed_units()) == 4 and not other._units.dropped_units():
            other.uncommit(damage(other, 2))
            assert commit(other, 2, "again")[1]
        delete_many(names)

    monkeypatch.setattr(slow.objects, "delete_many", label_again_first)
    slow.compact()
    assert [entry.worker for entry in LogitStore.open(store.uri).shards()] == ["w", "w", "again", "w"]
    assert verify_store(LogitStore.open(store.uri)).errors == []


def test_a_writer_in_the_old_round_goes_on_in_the_new_one(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is un-committed between its look at the index and its record."""
    writer = LogitStore.open(store.uri)
    put_if_absent, calls = writer.objects.put_if_absent, []

    def uncommit_first(name: str, data: bytes) -> bool:
        calls.append(name)
        if len(calls) == 1:
            other = LogitStore.open(store.uri)
            other.uncommit([other.shards()[0].name])
        return put_if_absent(name, data)

    monkeypatch.setattr(writer.objects, "put_if_absent", uncommit_first)
    name, won = commit(writer, 0, "late")
    assert won
    assert calls == ["commits/unit-0000.json", "commits/again-1/unit-0000.json"]
    opened = LogitStore.open(store.uri)
    assert opened.shards()[0].name == name
    assert verify_store(opened).errors == []
    assert not store.objects.exists("commits/unit-0000.json")


def test_a_unit_can_be_taken_out_more_than_once(store: LogitStore) -> None:
    for number in range(3):
        assert store.uncommit([store.shards()[1].name]) == ["unit-0001"]
        assert commit(store, 1, f"round {number}")[1]
    assert store.objects.exists("commits/again-3/unit-0001.json")
    assert LogitStore.open(store.uri).shards()[1].worker == "round 2"


def test_a_sound_successor_is_not_taken_for_the_bad_one(store: LogitStore) -> None:
    name = store.shards()[1].name
    store.uncommit([name])
    commit(store, 1, "again")
    assert store.uncommit([name]) == ["unit-0001"], "done before"
    assert LogitStore.open(store.uri).shards()[1].worker == "again"


def test_most_units_are_not_taken_out_by_accident(
    store: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, 0, 1, 2)
    assert main(["uncommit", store.uri, "--bad"]) == 2
    assert "3 of 4 units have no sound shard" in capsys.readouterr().err
    assert len(LogitStore.open(store.uri).shards()) == 4
    assert main(["uncommit", store.uri, "--bad", "--most"]) == 0
    assert "3 units un-committed" in capsys.readouterr().out
    assert main(["uncommit", store.uri, "--unit", "unit-0000"]) == 0, "it may be repeated"
    said = capsys.readouterr().out
    assert "unit unit-0000 was un-committed before, and is not labeled again yet" in said
    assert "0 units un-committed" in said
    assert main(["uncommit", store.uri, "--unit", "unit-9999"]) == 2
    assert "has no unit 'unit-9999'" in capsys.readouterr().err


def test_an_index_names_only_so_many(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncommit_module, "MAX_DROPPED", 1)
    with pytest.raises(StoreChangedError, match="2 units to un-commit, after 0 before, are more than the 1"):
        store.uncommit([entry.name for entry in store.shards()[:2]])


def test_an_index_older_than_a_record_is_refused(store: LogitStore) -> None:
    store.compact()
    old = store.objects.get("index.json")
    store.uncommit([store.shards()[1].name])
    commit(store, 1, "again")
    store.objects.put("index.json", old)
    with pytest.raises(StoreChangedError, match=r"again-1/unit-0001\.json is of round 1 .* knows 0"):
        LogitStore.open(store.uri)
    LogitStore.rebuild(store.uri)
    rebuilt = LogitStore.open(store.uri)
    assert [entry.unit_index for entry in rebuilt.shards()] == [0, 1, 2, 3]
    assert verify_store(rebuilt).errors == []
