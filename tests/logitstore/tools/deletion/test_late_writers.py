"""Records that a writer commits while they are deleted, or before a deletion that counted without them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.errors import ObjectStoreError
from logitstore.index.changes import compaction
from logitstore.index.commits import CommitRecord
from logitstore.index.deletions import DeletedSequences, Deletions
from logitstore.index.pointer import INDEX_NAME, IndexPointer
from logitstore.index.tail_deletions import TailDeletions
from logitstore.manifest.fields import RECORD_PARTS, InputInfo
from logitstore.objects.local import LocalBackend
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence
from logitstore.standalone_reader import read_store
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.logitstore.tools.deletion.deleted import GONE, left


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


def test_a_compaction_that_loses_its_swap_leaves_no_tombstone(
    left_behind: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write one of what a writer left of deleted records; the index names the winner's."""
    store, swap = left_behind, compaction.swap_pointer
    rival = LogitStore.open(store.uri)
    won: list[int] = []

    def after_the_rival(objects: Objects, etag: str | None, pointer: IndexPointer) -> bool:
        if not won:
            won.append(1)
            assert len(rival.compact().taken_out) == 1
        return swap(objects, etag, pointer)

    monkeypatch.setattr(compaction, "swap_pointer", after_the_rival)
    assert store.compact().num_records == 0
    named = {info.name for info in LogitStore.open(store.uri).deletion_infos()}
    assert len(named) == 2
    assert set(store.objects.list("deleted/")) == named
    assert verify_store(store).problems == []


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
