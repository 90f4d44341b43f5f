"""A store whose index or manifest is missing or old is never taken for an empty one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.codebook_objects import CURRENT_CODEBOOKS
from logitstore.codec.codebooks import identity_codebook
from logitstore.errors import CorruptManifestError, IndexLostError, StoreChangedError
from logitstore.index.changes import rebuild
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.garbage import repair
from logitstore.tools.verify import verify_store
from tests.conftest import Place
from tests.logitstore.random_labels import commit_units, make_manifest, make_unit
from tests.logitstore.tools.test_verify import small_codebooks

REJECT = Reject("input.jsonl", 7, "r7", "too long", "too_long")


def make_store(uri: str | Path, num_units: int = 6, num_compacted: int = 4) -> LogitStore:
    store = LogitStore.create(uri, make_manifest())
    for unit_index in range(num_units):
        unit_id, sequences = make_unit(unit_index)
        rejects = [REJECT] if unit_index == 2 else []
        store.commit_unit(unit_id, unit_index, sequences, rejects, seconds=2.5, worker="w")
        if unit_index == num_compacted - 1:
            store.compact()
    return store


def make_old(folder: str) -> None:
    """As `cp -p`, rsync and `aws s3 sync` keep the times of what they copy."""
    for path in Path(folder).rglob("*"):
        os.utime(path, (1e9, 1e9))


COMMANDS = (
    ["inspect", "STORE"],
    ["verify", "STORE"],
    ["verify", "STORE", "--repair", "--grace-sec", "-10"],
    ["head", "STORE"],
    ["cat", "STORE"],
    ["compact", "STORE"],
    ["codebook", "STORE"],
    ["export", "STORE", "--to", "jsonl", "OUT.jsonl"],
    ["merge", "STORE", "--out", "OUT"],
)


@pytest.mark.parametrize(
    ("lost", "num_units"),
    [
        ("index.json", 4),
        ("index.json", 6),
        ("index.json and segments", 4),
        ("index.json and segments", 6),
        ("old index.json", 4),
    ],
    ids=str,
)
def test_no_command_takes_a_lost_index_for_an_empty_store(
    local_place: Place, tmp_path: Path, lost: str, num_units: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = LogitStore.create(tmp_path / "fresh", make_manifest()).objects.get("index.json")
    store = make_store(local_place.uri, num_units)
    digest, shards = store.digest, store.objects.list("shards/")
    Path(local_place.uri, "index.json").unlink()
    if lost == "index.json and segments":
        shutil.rmtree(Path(local_place.uri, "index"))
    if lost == "old index.json":
        store.objects.put("index.json", fresh)
    make_old(local_place.uri)
    for command in COMMANDS:
        arguments = [
            part.replace("STORE", local_place.uri).replace("OUT", f"{tmp_path}/out") for part in command
        ]
        assert main(arguments) in (1, 3), command
        said = capsys.readouterr()
        assert "labels lie here that are not seen" in said.out + said.err, command
        assert "rebuild-index" in said.out + said.err
    assert store.objects.list("shards/") == shards
    assert main(["rebuild-index", local_place.uri]) == 0
    rebuilt = LogitStore.open(local_place.uri)
    assert rebuilt.digest == digest
    has_segments = lost != "index.json and segments"
    assert rebuilt.rejects() == ([REJECT] if has_segments else [])
    assert [entry.seconds for entry in rebuilt.shards()][:4] == [2.5 if has_segments else 0.0] * 4
    assert [problem.kind for problem in verify_store(rebuilt).errors] == []


def test_an_old_index_is_found_and_repair_removes_nothing(local_place: Place) -> None:
    """As in a copy that took index.json before a compaction and the rest after it."""
    store = LogitStore.create(local_place.uri, make_manifest())
    old = store.objects.get("index.json")
    store = make_store(local_place.uri, num_units=6, num_compacted=6)
    store.objects.put("index.json", old)
    make_old(local_place.uri)
    writer = LogitStore(store.objects, store.manifest)  # as one that was opened before
    commit_units(writer, [9])
    opened = LogitStore.open(local_place.uri)  # not empty, so it opens
    findings = verify_store(opened)
    assert {problem.kind for problem in findings.errors} == {"index_lost"}
    assert len([problem for problem in findings.problems if problem.kind == "unnamed_shard"]) == 6
    with pytest.raises(IndexLostError, match="nothing is removed"):
        repair(opened, findings)
    rebuilt, result = LogitStore.rebuild(local_place.uri)
    assert (result.num_units, result.num_from_shards) == (7, 0)
    assert (rebuilt.rejects(), verify_store(rebuilt).errors) == ([REJECT], [])


def test_a_lost_manifest_is_not_replaced(local_place: Place) -> None:
    store = make_store(local_place.uri)
    store.objects.delete("manifest.json")
    for open_it in (LogitStore.open, lambda uri: LogitStore.create(uri, make_manifest())):
        with pytest.raises(IndexLostError, match=r"holds .*shards.* but no manifest\.json"):
            open_it(local_place.uri)
    assert not store.objects.exists("manifest.json")


def test_a_job_stopped_before_its_first_commit_goes_on(local_place: Place) -> None:
    """Its shard lies there, its record does not: readers are told, writers go on, and nothing is garbage."""
    store = LogitStore.create(local_place.uri, make_manifest())
    unit_id, sequences = make_unit(0)
    entry, _ = store.commit_unit(unit_id, 0, sequences, seconds=0, worker="w")
    store.objects.delete("commits/unit-0000.json")
    assert len(LogitStore.open(local_place.uri).shards()) == 0, "a job that has just begun may be looked at"
    make_old(local_place.uri)
    with pytest.raises(IndexLostError, match=r"an empty index\.json, but holds 1 shards"):
        LogitStore.open(local_place.uri)
    writer = LogitStore.create(local_place.uri, make_manifest())
    assert [info.name for info in writer.unnamed_shards()] == [entry.name]
    second, won = writer.commit_unit(unit_id, 0, sequences, seconds=0, worker="w")
    assert won
    findings = verify_store(LogitStore.open(local_place.uri))
    assert [info.name for info in findings.garbage] == [entry.name]
    assert repair(writer, findings) == 1
    assert writer.objects.list("shards/") == [second.name]


def test_an_old_store_without_an_index_is_given_one(local_place: Place) -> None:
    """Versions before wrote index.json at the first compaction only."""
    store = make_store(local_place.uri, num_units=2, num_compacted=9)
    store.objects.delete("index.json")
    assert len(LogitStore.open(local_place.uri).shards()) == 2
    assert len(LogitStore.create(local_place.uri, make_manifest()).shards()) == 2
    assert store.objects.exists("index.json")


@pytest.mark.parametrize("num_units", [0, 2])
@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        ["copy", "STORE", "OUT"],
        ["compact", "STORE", "--purge"],
        ["delete", "STORE", "--ids", "NAMES", "--reason", "a test"],
        ["rebuild-index", "STORE"],
    ],
    ids=" ".join,
)
def test_every_command_works_on_a_store_without_an_index(
    tmp_path: Path, command: list[str], num_units: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As versions before left one, or a `create` that was cut off: nothing is lost, and so nothing wrong."""
    store = make_store(tmp_path / "store", num_units, num_compacted=9)
    store.objects.delete("index.json")
    (tmp_path / "names").write_text("no-such-record\n")
    places = {"STORE": store.uri, "NAMES": str(tmp_path / "names")}
    capsys.readouterr()
    status = main([places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in command])
    out, err = capsys.readouterr()
    assert status == 0, out + err


def test_an_uncommit_needs_no_index(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 2, num_compacted=9)
    store.objects.delete("index.json")
    entry = store.shards()[1]
    assert main(["uncommit", store.uri, "--unit", entry.unit_id]) == 0
    assert len(LogitStore.open(store.uri).shards()) == 1


def test_repair_keeps_what_could_be_the_only_copy(local_place: Place) -> None:
    """A rival's shard of a unit whose own is damaged, and shards of units that nobody committed."""
    store = make_store(local_place.uri, num_units=2, num_compacted=2)
    own = store.shards()[0]
    spare = own.name.replace(own.name[-22:-6], "00000000000000aa")
    unnamed = own.name.replace("unit-0000", "unit-0077")
    for name in (spare, unnamed):
        store.objects.put(name, store.objects.get(own.name))
    Path(local_place.uri, own.name).write_bytes(b"rotten")
    make_old(local_place.uri)
    findings = verify_store(LogitStore.open(local_place.uri))
    assert {(problem.kind, problem.where) for problem in findings.problems} == {
        ("wrong_size", own.name),
        ("spare_shard", spare),
        ("unnamed_shard", unnamed),
    }
    assert repair(store, findings) == 0
    LogitStore.rebuild(local_place.uri)
    rebuilt = LogitStore.open(local_place.uri)
    assert next(iter(rebuilt.shards())).name == spare
    assert verify_store(rebuilt).errors == []


def test_repair_does_not_remove_most_of_a_store(
    local_place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(local_place.uri, num_units=1, num_compacted=1)
    own = store.shards()[0]
    for number in range(2):
        name = own.name.replace(own.name[-22:-6], f"00000000000000a{number}")
        store.objects.put(name, store.objects.get(own.name))
    assert main(["verify", local_place.uri, "--repair"]) == 2
    assert f"{2 * own.num_bytes:,} bytes of shards would be removed and {own.num_bytes:,} stay" in (
        capsys.readouterr().err
    )
    assert len(store.objects.list("shards/")) == 3
    assert main(["verify", local_place.uri, "--repair", "--remove-most"]) == 0
    assert "removing 2 garbage objects" in capsys.readouterr().out
    assert store.objects.list("shards/") == [own.name]


def test_a_lost_codebook_pointer_is_not_replaced(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    first = store.set_codebooks(small_codebooks())
    commit_units(store, [0])
    store.compact()
    store.objects.delete(CURRENT_CODEBOOKS)
    with pytest.raises(CorruptManifestError, match=r"no codebooks/current\.json"):
        LogitStore.open(local_place.uri).set_codebooks(identity_codebook(101))
    rebuilt, _ = LogitStore.rebuild(local_place.uri)
    found = rebuilt.codebooks()
    assert found is not None
    assert found.hash == first.hash
    assert verify_store(rebuilt).errors == []


def test_a_suspended_compactor_cannot_bring_back_a_segment_that_repair_took(
    local_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote its segment an hour ago and swaps now: the swap must fail, or the store is unreadable."""
    store = make_store(local_place.uri, num_units=3, num_compacted=9)
    digest = store.digest
    suspended = LogitStore.open(local_place.uri)
    put_if_match, removed = suspended.objects.put_if_match, []

    def repair_first(name: str, data: bytes, etag: str) -> bool:
        if not removed:
            make_old(local_place.uri)
            other = LogitStore.open(local_place.uri)
            removed.append(repair(other, verify_store(other)))
        return put_if_match(name, data, etag)

    monkeypatch.setattr(suspended.objects, "put_if_match", repair_first)
    suspended.compact()
    assert removed == [2], "the segment and its rejects"
    assert LogitStore.open(local_place.uri).digest == digest
    assert verify_store(LogitStore.open(local_place.uri)).errors == []


def test_a_rebuild_beside_a_compaction_is_refused(
    local_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(local_place.uri, num_units=3, num_compacted=9)
    read_shards = rebuild._read_shards

    def compact_first(*arguments):
        store.compact()
        return read_shards(*arguments)

    monkeypatch.setattr(rebuild, "_read_shards", compact_first)
    with pytest.raises(StoreChangedError, match="was replaced while it was being rebuilt"):
        LogitStore.rebuild(local_place.uri)
    assert len(LogitStore.open(local_place.uri).shards()) == 3


def test_a_rebuild_says_what_it_could_not_read(
    local_place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(local_place.uri, num_units=4, num_compacted=2)
    broken = [
        store.objects.list("shards/")[0],
        store.objects.list("commits/")[0],
        store.index_segments()[0][0].name,
        "index.json",
    ]
    for name in broken:
        store.objects.put(name, store.objects.get(name)[:-20])
    assert main(["rebuild-index", local_place.uri, "--json"]) == 0
    said = capsys.readouterr()
    assert [name for name in broken if f"left out: {name}" not in said.err] == []
    assert len(json.loads(said.out)["unread"]) == 4
    rebuilt = LogitStore.open(local_place.uri)
    assert [entry.unit_index for entry in rebuilt.shards()] == [1, 2, 3]
    assert broken[1] in rebuilt.late_records()
    rebuilt.commit_unit("unit-0009", 9, make_unit(9)[1], seconds=0, worker="w")
    rebuilt.compact()
    assert store.objects.list("commits/") == []


def test_a_rebuild_drops_no_deletion(local_place: Place) -> None:
    store = make_store(local_place.uri, num_units=3, num_compacted=3)
    name = delete_records(store, frozenset({"record-0"}), "asked for").tombstone
    store.objects.put(name, store.objects.get(name)[:-20])
    store.objects.delete("index.json")
    with pytest.raises(CorruptManifestError, match="says what was deleted: restore it"):
        LogitStore.rebuild(local_place.uri)
    store.objects.delete(name)
    rebuilt, _ = LogitStore.rebuild(local_place.uri)
    assert "record-0" in [one.record_id for one in rebuilt]


def test_a_folder_in_place_of_the_index_is_no_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was there for one look and not for the other, for ever."""
    store = make_store(tmp_path / "store")
    store.compact()
    (tmp_path / "store" / "index.json").unlink()
    (tmp_path / "store" / "index.json").mkdir()
    for command in ("inspect", "cat", "compact"):
        assert main([command, store.uri]) == 3
        assert "has no index.json, but holds 6 shards" in capsys.readouterr().err, command
