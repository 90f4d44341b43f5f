"""`compact --purge`: no byte of deleted records stays, and what it had to leave is said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from labeler.planning.plan import Plan
from logitstore.__main__ import main
from logitstore.errors import CorruptManifestError
from logitstore.inputs.identity import digest_of
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_sequence
from tests.logitstore.tools.deletion.deleted import GONE, NAMES, holders, left, make_plan


def test_a_purge_leaves_no_byte_of_them(store: LogitStore) -> None:
    make_plan(store)
    lines = [json.dumps({"record_id": name, "line": 1}) for name in ("person-08", "person-00")]
    store.objects.put("rejects.jsonl", "\n".join(lines).encode())
    shards = {entry.name for entry in store.shards()}
    delete_records(store, GONE, "asked for")
    assert all(holders(store, name) for name in GONE)
    before = {one.record_id: one for one in store.iter_sequences()}
    result = purge(store)
    assert (result.num_shards, result.num_plan_records, result.num_rejects) == (3, 4, 2)
    assert result.not_removed == ""
    assert {name: holders(store, name) for name in GONE} == {name: [] for name in GONE}
    assert holders(store, "person-00") != []
    assert len(shards & {entry.name for entry in store.shards()}) == 1, "only shards concerned are written"
    for opened in (store, LogitStore.open(store.uri)):
        after = {one.record_id: one for one in opened.iter_sequences()}
        assert list(after) == [name for name in NAMES if name not in GONE]
        for name, sequence in after.items():
            np.testing.assert_array_equal(sequence.rows.logits_NK, before[name].rows.logits_NK)
            np.testing.assert_array_equal(sequence.rows.log_tail_mass_NM, before[name].rows.log_tail_mass_NM)
        assert opened.rejects() == []
    assert verify_store(store).problems == []
    units = list(Plan(store.objects).units())
    assert [unit.num_records for unit in units] == [2, 1, 2, 3]
    known = Plan(store.objects).known()
    assert all(digest_of(name) in known.ids for name in NAMES), "planned once, not planned again"
    assert all(digest_of(name) in known.deleted for name in GONE)
    assert purge(store).num_shards == 0


def test_a_purge_says_what_it_could_not_read(
    store: LogitStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects.put("rejects.jsonl", b'{"record_id": "person-08"}\nperson-08 again\n')
    delete_records(store, GONE, "asked for")
    monkeypatch.setattr("logitstore.index.ids.building.MAX_ENTRIES", 3)
    assert main(["compact", store.uri, "--purge"]) == 0
    said = capsys.readouterr().err
    assert "1 line of the lists of rejects cannot be read and stay" in said
    assert "an id index at most 3" in said
    assert store.objects.get("rejects.jsonl") == b"person-08 again\n"


def test_a_unit_of_deleted_records_alone_has_no_shard(store: LogitStore) -> None:
    delete_records(store, frozenset(NAMES[3:6]), "all of a unit")
    purge(store)
    assert [bool(entry.name) for entry in store.shards()] == [True, False, True, True]
    assert verify_store(store).problems == []


def test_a_purge_that_was_cut_off_is_repeated(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    delete_records(store, GONE, "asked for")
    real = LogitStore.replace_index
    monkeypatch.setattr(LogitStore, "replace_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        purge(store)
    monkeypatch.setattr(LogitStore, "replace_index", real)
    assert left(LogitStore.open(store.uri)) == [name for name in NAMES if name not in GONE]
    assert purge(LogitStore.open(store.uri)).num_shards == 3
    assert {name: holders(store, name) for name in GONE} == {name: [] for name in GONE}
    found = verify_store(LogitStore.open(store.uri), grace_sec=-1)
    assert found.errors == []


def test_a_purge_that_was_cut_off_after_the_swap_is_repeated(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had replaced is named by nothing then, and holds the deleted records."""
    make_plan(store)
    delete_records(store, GONE, "asked for")
    real = LogitStore.replace_index

    def replace_and_die(*given: Any) -> bool:
        assert real(*given)
        raise KeyboardInterrupt

    store.compact()
    monkeypatch.setattr(LogitStore, "replace_index", replace_and_die)
    with pytest.raises(KeyboardInterrupt):
        purge(store)
    monkeypatch.setattr(LogitStore, "replace_index", real)
    again = LogitStore.open(store.uri)
    assert all(holders(again, name) for name in GONE)
    result = purge(again)
    assert (result.num_shards, result.not_removed) == (0, "")
    assert {name: holders(again, name) for name in GONE} == {name: [] for name in GONE}
    assert left(LogitStore.open(store.uri)) == [name for name in NAMES if name not in GONE]


def test_a_purge_removes_what_a_writer_left_that_lost_its_unit(store: LogitStore) -> None:
    entry = next(iter(store.shards()))
    with store.open_shard(entry) as reader:
        sequences = list(reader.iter_sequences())
    lost = store.write_attempt(entry.unit_id, entry.unit_index, sequences, [], 0.0, "late").shard.name
    delete_records(store, frozenset([sequences[0].record_id]), "asked for")
    assert lost in holders(store, sequences[0].record_id)
    assert purge(store).not_removed == ""
    assert holders(store, sequences[0].record_id) == []
    assert holders(store, sequences[1].record_id) != []


def test_a_purge_removes_what_is_no_shard_of_any_unit(store: LogitStore) -> None:
    """Half a shard, of a copy that was cut off: it made the purge fail after its index was replaced."""
    whole = store.write_attempt("unit-9999", 9999, [make_sequence("person-01")], [], 0.0, "died").shard.name
    store.objects.put(whole, store.objects.get(whole)[:-9])
    delete_records(store, GONE, "asked for")
    assert whole in holders(store, "person-01")
    assert purge(store).not_removed == ""
    assert holders(store, "person-01") == []


def test_a_purge_tells_what_to_do_with_a_plan_that_lost_a_part(store: LogitStore) -> None:
    make_plan(store)
    delete_records(store, GONE, "asked for")
    store.objects.delete_many(name for name in store.objects.list("plan/") if name.endswith(".units"))
    with pytest.raises(CorruptManifestError, match="delete plan/, then purge again"):
        purge(store)
    store.objects.delete_many(store.objects.list("plan/"))
    assert purge(store).not_removed == ""
    assert [name for name in store.objects.list() if b"person-08" in store.objects.get(name)] == []


def test_a_purge_takes_in_what_was_deleted_since_the_store_was_opened(store: LogitStore) -> None:
    make_plan(store)
    opened = LogitStore.open(store.uri)
    delete_records(store, GONE, "asked for")
    result = purge(opened)
    assert (result.num_shards, result.num_plan_records) == (3, 4)
    assert {name: holders(store, name) for name in GONE} == {name: [] for name in GONE}


def test_a_purge_says_which_copies_it_had_to_leave(
    store: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard that no record names may be the only copy of its other records."""
    sequences = [make_sequence("person-99"), make_sequence("person-98")]
    name = store.write_attempt("unit-9999", 9999, sequences, [], 0.0, "died").shard.name
    delete_records(store, frozenset(["person-99"]), "asked for")
    assert main(["compact", store.uri, "--purge"]) == 1
    said = capsys.readouterr().err
    assert f"deleted records are still in objects: {name} holds them and no record names it" in said
    assert main(["rebuild-index", store.uri]) == 0
    assert "person-99" not in left(LogitStore.open(store.uri)), (
        "the index has its shard, and it stays deleted"
    )
    assert verify_store(LogitStore.open(store.uri)).errors == []
    assert main(["compact", store.uri, "--purge"]) == 0
    assert holders(store, "person-99") == []
    assert "person-98" in left(LogitStore.open(store.uri))


def test_a_purge_says_of_an_uncommitted_shard_what_lets_it_go(
    store: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rebuild-index`, which both purge and verify named, leaves such a shard out, so nothing helped."""
    entry = next(iter(store.shards()))
    with store.open_shard(entry) as reader:
        sequences = list(reader.iter_sequences())
    store.uncommit([entry.name])
    delete_records(store, frozenset([sequences[0].record_id]), "asked for")
    assert main(["compact", store.uri, "--purge"]) == 1
    said = capsys.readouterr().err
    assert f"{entry.name} holds them and its unit was un-committed: run the job again" in said
    found = verify_store(LogitStore.open(store.uri), grace_sec=-1)
    assert [one.kind for one in found.problems if one.where == entry.name] == ["uncommitted_shard"]
    assert "rebuild-index" not in said + found.problems[0].message
    store.refresh()
    store.commit_unit(entry.unit_id, entry.unit_index, sequences, seconds=1, worker="the job again")
    assert main(["compact", store.uri, "--purge"]) == 0
    assert holders(store, sequences[0].record_id) == []
    assert sequences[1].record_id in left(LogitStore.open(store.uri))
