"""Records that are taken down: skipped by all readers at once, then gone from every byte."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.planning.plan import Plan, SegmentWriter, read_unit
from labeler.planning.units import unit_id_of
from labeler.records import PlannedRecord, TokenizedPrompt
from logitstore.__main__ import main
from logitstore.errors import CorruptManifestError, ObjectStoreError, StoreChangedError
from logitstore.index import pointer as index_pointer
from logitstore.index.commits import CommitRecord
from logitstore.index.deletions import DeletedSequences, Deletions
from logitstore.index.pointer import INDEX_NAME, IndexPointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.inputs.identity import digest_of, record_id
from logitstore.job_objects import STATUS_NAME
from logitstore.manifest import strict_json
from logitstore.manifest.fields import RECORD_PARTS, InputInfo
from logitstore.objects.local import LocalBackend
from logitstore.records import LabeledSequence, Reject
from logitstore.standalone_reader import read_store
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.inspection import inspect_store
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from logitstore.viewer.pages import SequencePages
from tests.logitstore.random_labels import make_manifest, make_sequence
from trainer.data.dataset import StreamingLogitDataset

NAMES = [f"person-{number:02}" for number in range(12)]
GONE = frozenset({"person-01", "person-04", "person-05", "person-08"})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    """Four units of three records, of which the last is not compacted yet; blocks of two sequences."""
    monkeypatch.setattr("logitstore.shard.writer.BLOCK_ROWS", 22)
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(4):
        sequences = [make_sequence(name) for name in NAMES[3 * unit : 3 * unit + 3]]
        rejects = [Reject("in.jsonl", 99, "person-08", "too long", "too_long")] if unit == 0 else []
        store.commit_unit(f"unit-{unit}", unit, sequences, rejects, seconds=1, worker="w")
        if unit == 2:
            store.compact()
    return store


def left(store: LogitStore) -> list[str]:
    return [sequence.record_id for sequence in store.iter_sequences(top_k=1)]


def test_every_reader_skips_them_at_once(store: LogitStore, capsys: pytest.CaptureFixture[str]) -> None:
    before, reader = store.digest, LogitStore.open(store.uri)
    result = delete_records(store, GONE | {"nobody"}, "asked for")
    assert (result.num_sequences, result.num_units, result.num_absent) == (4, 3, 1)
    rest = [name for name in NAMES if name not in GONE]
    reader.refresh()
    for seen in (store, reader, LogitStore.open(store.uri)):
        assert left(seen) == rest
        assert int(seen.shards().column("num_sequences").sum()) == 8
        assert int(seen.shards().column("num_rows").sum()) == 8 * 11
    assert store.digest != before, "a trainer's saved order is not of this store any more"
    pages = SequencePages(store)
    assert [one.record_id for one in pages.read(0, 20)] == rest
    assert [pages.read(at, 1)[0].record_id for at in range(8)] == rest
    dataset = StreamingLogitDataset(store.uri, shuffle=False)
    assert [sample.sequence.record_id for sample in dataset] == rest
    assert dataset[3].sequence.record_id == rest[3]
    assert inspect_store(store).num_sequences == 8
    assert verify_store(store).problems == []
    assert main(["cat", store.uri, "--top-k", "1"]) == 0
    assert [json.loads(line)["record_id"] for line in capsys.readouterr().out.splitlines()] == rest


def test_deleting_again_adds_nothing_and_further_ones_add_up(store: LogitStore) -> None:
    delete_records(store, frozenset({"person-04"}), "one")
    again = delete_records(store, frozenset({"person-04"}), "one")
    assert (again.num_sequences, again.tombstone) == (0, "")
    assert delete_records(store, GONE, "more").num_sequences == 3
    assert len(store.deletions.tombstones) == 2
    assert left(store) == [name for name in NAMES if name not in GONE]


def test_a_deleted_record_that_is_labeled_again_stays_deleted(store: LogitStore) -> None:
    delete_records(store, GONE, "asked for")
    names = [name for name in (entry.name for entry in store.shards()) if "unit-1" in name]
    assert store.uncommit(names) == ["unit-1"]
    store.commit_unit("unit-1", 1, [make_sequence(name) for name in NAMES[3:6]], seconds=1, worker="w")
    assert left(store) == [name for name in NAMES if name not in GONE]
    assert verify_store(store).errors == []


def parts_store(tmp_path: Path) -> LogitStore:
    """A store whose records are turns of conversations; the first unit has the first turn of each."""
    info = InputInfo("in", "messages", {"messages": "messages", "id": "id"}, parts="turns")
    manifest = dataclasses.replace(make_manifest(), input=info, features=(RECORD_PARTS,))
    store = LogitStore.create(tmp_path / "parts", manifest)
    sequences = [make_sequence(f"{name}#turn-1") for name in "cd"]
    store.commit_unit("unit-0", 0, sequences, seconds=0, worker="w")
    return store


def second_turns() -> list[LabeledSequence]:
    return [make_sequence(f"{name}#turn-2") for name in "cd"]


def test_parts_of_a_deleted_record_are_not_committed(tmp_path: Path) -> None:
    store = parts_store(tmp_path)
    delete_records(store, frozenset({"c"}), "asked for")
    entry, _ = store.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
    assert (entry.num_sequences, left(store)) == (1, ["d#turn-1", "d#turn-2"])
    assert verify_store(store).errors == []


def delete_before_the_record_is_put(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the store's next commit, whose attempts are in the list that is returned."""
    other, put_if_absent = LogitStore.open(store.uri), store.objects.put_if_absent
    attempts: list[str] = []

    def put(name: str, data: bytes) -> bool:
        attempts.append(json.loads(data)["attempt"])
        if len(attempts) == 1:
            delete_records(other, frozenset({"c"}), "asked for")
        return put_if_absent(name, data)

    monkeypatch.setattr(store.objects, "put_if_absent", put)
    return attempts


def test_a_writer_takes_back_what_was_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts_store(tmp_path)
    attempts = delete_before_the_record_is_put(store, monkeypatch)
    entry, won = store.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
    assert (won, entry.num_sequences, len(attempts)) == (True, 1, 2)
    assert left(LogitStore.open(store.uri)) == ["d#turn-1", "d#turn-2"]
    assert verify_store(store).errors == []


def test_a_writer_that_lost_the_reply_takes_it_back_when_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts_store(tmp_path)
    delete_before_the_record_is_put(store, monkeypatch)
    put_if_absent = store.objects.put_if_absent

    def reply_lost(name: str, data: bytes) -> bool:
        put_if_absent(name, data)
        monkeypatch.setattr(store.objects, "put_if_absent", put_if_absent)
        raise ObjectStoreError("the reply was lost, on purpose")

    monkeypatch.setattr(store.objects, "put_if_absent", reply_lost)
    with pytest.raises(ObjectStoreError):
        store.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
    assert left(LogitStore.open(store.uri)) == ["d#turn-1", "d#turn-2"], "not even until it tries again"
    entry, _ = store.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
    assert b"c#turn-2" not in store.objects.get(entry.name)
    assert left(LogitStore.open(store.uri)) == ["d#turn-1", "d#turn-2"]


def test_a_deletion_finds_what_was_committed_before_it_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts_store(tmp_path)
    writer, replace_index = LogitStore.open(store.uri), LogitStore.replace_index

    def commit_first(self: LogitStore, pointer: IndexPointer, etag: str) -> bool:
        if self is store and "unit-1" not in writer.committed_units():
            writer.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
        return replace_index(self, pointer, etag)

    monkeypatch.setattr(LogitStore, "replace_index", commit_first)
    result = delete_records(store, frozenset({"c"}), "asked for")
    assert (result.num_sequences, result.num_units, result.num_absent) == (2, 2, 0)
    assert left(LogitStore.open(store.uri)) == ["d#turn-1", "d#turn-2"]
    assert verify_store(store).errors == []


@pytest.fixture
def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogitStore:
    """A writer that did not know that c was deleted put its record and died before it looked."""
    store = parts_store(tmp_path)
    delete_before_the_record_is_put(store, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(LogitStore, "_shows_deleted", lambda *_: False)
        store.commit_unit("unit-1", 1, second_turns(), seconds=0, worker="w")
    monkeypatch.undo()
    return LogitStore.open(store.uri)


def test_what_a_writer_that_died_left_of_them_is_never_shown(
    left_behind: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store = left_behind
    for step in ("as it died", "compacted", "rebuilt", "purged"):
        if step == "compacted":
            (taken_out,) = store.compact().taken_out
            assert (taken_out.unit_id, taken_out.places) == ("unit-1", (0,))
        elif step == "rebuilt":
            LogitStore.rebuild(store.uri)
        elif step == "purged":
            assert main(["compact", "--purge", store.uri]) == 0, capsys.readouterr().err
        store = LogitStore.open(store.uri)
        assert (left(store), len(store)) == (["d#turn-1", "d#turn-2"], 2), step
        assert [one["record_id"] for one in read_store(store.uri)] == left(store)
        assert [store[at].record_id for at in range(2)] == left(store)
        assert store.find(["c#turn-2", "d#turn-2"])["c#turn-2"] == []
        assert verify_store(store).errors == [], step
    assert delete_records(store, frozenset({"c"}), "again").num_sequences == 0
    assert not any(b"c#turn" in path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file())


def test_a_view_that_was_open_looks_into_each_shard_once(
    left_behind: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    find = TailDeletions.find

    def counting(
        self: TailDeletions, records: list[CommitRecord], deletions: Deletions
    ) -> dict[str, DeletedSequences | None]:
        looked.extend(record.shard.unit_id for record in records)
        return find(self, records, deletions)

    monkeypatch.setattr(TailDeletions, "find", counting)
    reader = LogitStore.open(left_behind.uri)
    assert len(reader) == 2
    LogitStore.open(left_behind.uri).commit_unit(
        "unit-2", 2, [make_sequence("e#turn-1")], seconds=0, worker="w"
    )
    for _ in range(2):
        reader.refresh()
        assert len(reader) == 3
    assert looked == ["unit-1", "unit-2"]


def test_what_an_older_version_took_into_the_index_is_told(
    left_behind: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = left_behind
    with monkeypatch.context() as patched:
        patched.setattr(TailDeletions, "find", lambda _, records, __: {one.attempt: None for one in records})
        store.compact()
    (error,) = verify_store(store).errors
    assert (error.kind, "c#turn-2" in error.message) == ("deleted_shown", True)
    assert delete_records(store, frozenset({"c"}), "again").num_sequences == 1
    assert (verify_store(store).errors, left(store)) == ([], ["d#turn-1", "d#turn-2"])


def test_a_commit_reads_the_index_once(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    get_with_etag = LocalBackend.get_with_etag

    def counting(self: LocalBackend, name: str) -> tuple[bytes, str]:
        read.append(name)
        return get_with_etag(self, name)

    delete_records(store, GONE, "asked for")
    monkeypatch.setattr(LocalBackend, "get_with_etag", counting)
    store.commit_unit("unit-9", 9, [make_sequence("person-90")], seconds=0, worker="w")
    assert read == [INDEX_NAME]


def test_older_readers_refuse_a_store_with_deletions(store: LogitStore) -> None:
    """Before deletions, `index.json` had no such field, and a field that a reader does not know is refused."""
    delete_records(store, GONE, "asked for")
    value = json.loads(store.objects.get(INDEX_NAME))
    assert "deleted" in value
    value["removed"] = value.pop("deleted")
    with pytest.raises(CorruptManifestError, match="removed"):
        index_pointer.decode_pointer(strict_json.encode(value))


def test_a_lost_tombstone_opens_no_store(store: LogitStore) -> None:
    name = delete_records(store, GONE, "asked for").tombstone
    store.objects.delete(name)
    with pytest.raises(FileNotFoundError, match="says what was deleted"):
        LogitStore.open(store.uri)


def test_a_rebuilt_index_keeps_what_was_deleted(store: LogitStore) -> None:
    delete_records(store, GONE, "asked for")
    store.objects.delete(INDEX_NAME)
    rebuilt, _ = LogitStore.rebuild(store.uri)
    assert left(rebuilt) == [name for name in NAMES if name not in GONE]
    assert verify_store(rebuilt).problems == []


def test_a_rebuilt_index_counts_a_deletion_once_that_lies_there_twice(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that was killed before the index named it, and its repetition, which asked for more."""
    store.compact()
    real = LogitStore.replace_index
    monkeypatch.setattr(LogitStore, "replace_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete_records(store, frozenset(["person-01"]), "asked for")
    monkeypatch.setattr(LogitStore, "replace_index", real)
    delete_records(store, frozenset(["person-00", "person-01"]), "asked for")
    before = store.shards().column("num_rows").tolist()
    rebuilt, _ = LogitStore.rebuild(store.uri)
    assert left(rebuilt) == NAMES[2:]
    assert rebuilt.shards().column("num_rows").tolist() == before
    assert verify_store(rebuilt).errors == []
    assert rebuilt.deletions.records == {digest_of(name).hex() for name in NAMES[:2]}
    again, _ = LogitStore.rebuild(store.uri)
    assert again.index_pointer()[0].deleted == rebuilt.index_pointer()[0].deleted, "nothing is written again"


def test_not_while_a_job_is_at_work(store: LogitStore) -> None:
    from datetime import UTC, datetime

    status = {"state": "running", "updated": datetime.now(UTC).isoformat()}
    store.objects.put(STATUS_NAME, json.dumps(status).encode())
    for call in (lambda: delete_records(store, GONE, "asked for"), lambda: purge(store)):
        with pytest.raises(StoreChangedError, match="a job is at work here"):
            call()
    assert left(store) == NAMES


def test_verify_against_the_input_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    store = LogitStore.create(tmp_path / "store", make_manifest())
    names = [record_id({"text": text}, store.manifest.input) for text in "ab"]
    store.commit_unit("u", 0, [make_sequence(name) for name in names], seconds=0, worker="w")
    ids = tmp_path / "ids.txt"
    ids.write_text(names[0] + "\n")
    assert main(["delete", store.uri, "--ids", str(ids), "--reason", "asked for"]) == 0
    assert "1 sequence of 1 records deleted in 1 unit; their bytes go by" in capsys.readouterr().out
    for purged in (False, True):
        assert main(["verify", store.uri, "--against", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_deleted"], found["num_sequences"], found["num_input_records"]) == (1, 1, 2)
        if not purged:
            assert main(["compact", store.uri, "--purge"]) == 0
            assert "1 shard written anew" in capsys.readouterr().out


def make_plan(store: LogitStore) -> None:
    plan = Plan(store.objects)
    writer = SegmentWriter(store.objects, plan.known())
    for unit in range(4):
        names = NAMES[3 * unit : 3 * unit + 3]
        records = [
            PlannedRecord(TokenizedPrompt(name, np.arange(5, dtype=np.int32), None, 1), "in.jsonl", line)
            for line, name in enumerate(names)
        ]
        ids = b"".join(map(digest_of, names))
        writer.add(unit_id_of(names), records, 15, ids, b"", ids)
    writer.flush()


def holders(store: LogitStore, name: str) -> list[str]:
    """Objects in whose bytes, or in whose records of the plan, a record's id stands."""
    found = [one for one in store.objects.list() if name.encode() in store.objects.get(one)]
    planned = [
        record.prompt.record_id
        for unit in Plan(store.objects).units()
        for record in read_unit(store.objects, unit)
    ]
    return found + (["the plan"] if name in planned else [])


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
    monkeypatch.setattr("logitstore.index.id_building.MAX_ENTRIES", 3)
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
