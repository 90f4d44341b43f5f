"""Records that are taken down: skipped by all readers at once, then gone from every byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.errors import CorruptManifestError, StoreChangedError
from logitstore.index import pointer as index_pointer
from logitstore.index.pointer import INDEX_NAME
from logitstore.inputs.identity import digest_of, record_id
from logitstore.job_objects import STATUS_NAME
from logitstore.manifest import strict_json
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.inspection import inspect_store
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from logitstore.viewer.pages import SequencePages
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.logitstore.tools.deletion.deleted import GONE, NAMES, left
from trainer.data.dataset import StreamingLogitDataset


def test_every_reader_skips_them_at_once(store: LogitStore, capsys: pytest.CaptureFixture[str]) -> None:
    before, reader = store.digest, LogitStore.open(store.uri)
    result = delete_records(store, GONE | {"nobody"}, "asked for")
    assert (result.num_sequences, result.num_units, result.num_absent) == (4, 3, 1)
    again = delete_records(store, GONE | {"nobody", "noone"}, "asked for")
    assert (again.num_sequences, again.num_absent, again.num_before) == (0, 1, len(GONE) + 1)
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
    assert "1 sequence of 1 record deleted in 1 unit; their bytes go by" in capsys.readouterr().out
    for purged in (False, True):
        assert main(["verify", store.uri, "--against", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_deleted"], found["num_sequences"], found["num_input_records"]) == (1, 1, 2)
        if not purged:
            assert main(["compact", store.uri, "--purge"]) == 0
            assert "1 shard written anew" in capsys.readouterr().out


def test_ids_written_otherwise_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person's record stays where the list has an accent in one piece and the store has it in two."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    names = ["cafe\u0301", "b ", "caf\u00e8"]
    store.commit_unit("unit-0", 0, [make_sequence(name) for name in names], seconds=0, worker="w")
    (tmp_path / "ids").write_text("caf\u00e9\nb\nnobody\n", encoding="utf-8")
    command = ["delete", store.uri, "--ids", str(tmp_path / "ids"), "--reason", "asked for"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "0 sequences of 3 records deleted in 0 units; without labels here: 3" in said.out
    assert "3 records have no labels here, such as 'b'" in said.err
    assert "these are here and not deleted: 'b ', 'cafe\\u0301';" in said.err
    (tmp_path / "ids").write_text("cafe\u0301\nb \n", encoding="utf-8")
    assert main(command) == 0
    assert "not deleted" not in capsys.readouterr().err
    assert [one.record_id for one in LogitStore.open(store.uri)] == ["caf\u00e8"]
