"""Sequences by number and by id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitstore.objects.local import LocalBackend
from logitstore.rows.where import parse_selection
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from tests.logitstore.random_labels import make_manifest, make_sequence


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    """Eight units of five records in blocks of two; record r7 has two samples."""
    monkeypatch.setattr("logitstore.shard.writer.BLOCK_ROWS", 22)
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(8):
        sequences = [make_sequence(f"r{5 * unit + place}") for place in range(5)]
        if unit == 1:
            sequences.append(make_sequence("r7", sample_index=1))
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0, worker="w")
    return store


def test_by_number(store: LogitStore) -> None:
    names = [one.record_id for one in store]
    assert len(store) == len(names) == 41
    assert [store[number].record_id for number in range(41)] == names
    assert store[-1].record_id == names[-1]
    assert [one.record_id for one in store[3:30:4]] == names[3:30:4]
    assert [one.record_id for one in store[-3:]] == names[-3:]
    assert store[50:60] == []
    for number in (41, -42):
        with pytest.raises(IndexError):
            store[number]


def test_by_id(store: LogitStore) -> None:
    expected = make_sequence("r33")
    assert store["r33"].token_ids_T.tolist() == expected.token_ids_T.tolist()
    assert (store["r7", 0].sample_index, store["r7", 1].sample_index) == (0, 1)
    assert [one.record_id for one in store[["r12", "r3", "r12"]]] == ["r12", "r3", "r12"]
    found = store.find(["r7", "nobody", "r1"])
    assert {name: [one.sample_index for one in some] for name, some in found.items()} == {
        "r7": [0, 1], "nobody": [], "r1": [0],
    }  # fmt: skip
    with pytest.raises(KeyError, match="has the samples 0, 1; ask for one"):
        store["r7"]
    assert "r7" in store
    assert "nobody" not in store
    with pytest.raises(TypeError, match="7 is no record id"):
        assert 7 in store
    for key in ("nobody", ("r7", 2), ["r1", "nobody"]):
        with pytest.raises(KeyError, match=r"nobody|samples"):
            store[key]


def test_what_is_asked_for_is_read_once_and_nothing_else(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_block = ShardReader.read_block

    def counting(self: ShardReader, index: int, *, top_k: int | None = None):
        read.append(index)
        return read_block(self, index, top_k=top_k)

    monkeypatch.setattr(ShardReader, "read_block", counting)
    assert len(store[["r0", "r1", "r2", "r39"]]) == 4
    assert sorted(read) == [0, 1, 2], "two blocks of the first shard, one of the last"
    opened = opened_shards(monkeypatch)
    assert store["r25"].record_id == "r25"
    assert len(opened) == 1, "ids are read once"


def test_deleted_and_new_sequences(store: LogitStore) -> None:
    assert store["r20"].record_id == "r20"
    delete_records(store, frozenset({"r20"}), "asked for")
    assert len(store) == 40
    assert store.find(["r20"]) == {"r20": []}
    assert store["r21"].record_id == "r21"
    store.commit_unit("later", 9, [make_sequence("later")], seconds=0, worker="w")
    assert store["later"].record_id == store[-1].record_id == "later"


def test_what_a_store_can_be_asked_for(tmp_path: Path) -> None:
    """Numbers and ids as numpy and pandas have them; whatever else is told what there is."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("u", 0, [make_sequence(name) for name in "abc"], seconds=0, worker="w")
    assert (
        store[np.int64(1)].record_id
        == store[np.uint8(1)].record_id
        == store["b", np.int32(0)].record_id
        == "b"
    )
    assert [one.record_id for one in store[np.array(["c", "a"])]] == ["c", "a"]  # type: ignore[call-overload]
    for number in (3, -4, 10**9, -(10**9)):
        with pytest.raises(IndexError, match=f"sequence {number} of 3"):
            store[number]
    for other in (1.5, None, b"a", ("a",), ("a", "b"), ("a", 0, 0), ["a", 3], [0, 1], {"a": 1}):
        with pytest.raises(TypeError, match=r"a store has nothing under .* ask for a number"):
            store[other]  # type: ignore[call-overload]


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "empty", make_manifest())
    assert (len(store), bool(store), store[:], store.find(["a"])) == (0, True, [], {"a": []})


def test_a_lookup_goes_on_after_others_compacted(store: LogitStore) -> None:
    """Compaction removes the id index that the reader has opened, and those it has not looked at yet."""
    store.compact()
    reader, late = LogitStore.open(store.uri), LogitStore.open(store.uri)
    assert reader["r3"].record_id == "r3"
    store.uncommit([store.shards()[0].name])
    for unit in (0, 20, 21):
        store.commit_unit(f"unit-{unit}", unit, [make_sequence(f"n{unit}")], seconds=0, worker="w")
    store.compact()
    for seen in (reader, late):
        assert seen["r33"].record_id == "r33"
        assert seen["r4"].record_id == "r4", "as of its last refresh"
        assert seen.find(["n0", "n20"]) == {"n0": [], "n20": []}
        assert [one.record_id for one in parse_selection("record_id in (r7)").sequences(seen)] == ["r7"] * 2
        seen.refresh()
        assert (seen["n0"].record_id, seen["n21"].record_id, seen.find(["r4"])) == ("n0", "n21", {"r4": []})


def test_ids_are_read_from_the_shards_where_the_id_index_is_gone(store: LogitStore) -> None:
    store.compact()
    assert store["r3"].record_id == "r3"
    store.objects.delete_many([name for name in store.objects.list("index/") if name.endswith("-ids.bin")])
    assert store["r33"].record_id == "r33"


def test_a_lookup_after_compaction_reads_no_shard_for_ids(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.compact()
    reader, late = LogitStore.open(store.uri), LogitStore.open(store.uri)
    assert reader["r3"].record_id == "r3"
    for unit in (10, 11, 12):
        store.commit_unit(f"unit-{unit}", unit, [make_sequence(f"n{unit}")], seconds=0, worker="w")
    store.compact()
    assert len(store.index_segments()) == 1
    opened = opened_shards(monkeypatch)
    for seen in (reader, late):
        assert seen["r33"].record_id == "r33"
    assert len(opened) == 2, "the shard of the record"


def test_a_refresh_reads_the_ids_of_new_shards_alone(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.find(["nobody"]) == {"nobody": []}
    other = LogitStore.open(store.uri)
    other.commit_unit("later", 9, [make_sequence("later")], seconds=0, worker="w")
    delete_records(other, frozenset({"r1"}), "asked for")
    store.objects.delete_many([name for name in store.objects.list("index/") if name.endswith("-ids.bin")])
    opened = opened_shards(monkeypatch)
    store.refresh()
    assert store.find(["nobody", "r1"]) == {"nobody": [], "r1": []}
    assert len(opened) == 1
    assert store["r2"].record_id == "r2"


def opened_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are opened from now on."""
    opened: list[str] = []
    open_object = LocalBackend.open

    def opening(self: LocalBackend, name: str, num_bytes: int | None, buffer_bytes: int):
        opened.extend([name] if name.startswith("shards/") else [])
        return open_object(self, name, num_bytes, buffer_bytes)

    monkeypatch.setattr(LocalBackend, "open", opening)
    return opened
