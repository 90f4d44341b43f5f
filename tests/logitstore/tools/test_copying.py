"""`store copy`: any address to any address, beside a job, cut off and repeated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from benchmarks.servers.web import WebHabits, run_web_server
from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import AccessRefusedError, CorruptShardError, IndexLostError, StoreExistsError
from logitstore.objects.opening import ObjectInfo, Objects
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer, read_file, stored_tokenizer
from logitstore.tools import copying
from logitstore.tools.copying import copy_store
from logitstore.tools.deletion import delete_records
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence
from tests.servers.s3_dialects import run_dialect


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Two units in the index, one with a record of its own, one sequence deleted."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit_index in range(3):
        commit_units(store, [unit_index])
        if unit_index == 1:
            delete_records(store, frozenset({"record-1"}), "asked for")
    return store


def test_a_copy_is_the_store(store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.objects.put("plan/head.json", b"{}")
    store.objects.put("logs/host.log", b"host")
    put_tokenizer(store.objects, {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}, "apache-2.0")
    out = tmp_path / "copy"
    assert main(["copy", store.uri, str(out)]) == 0
    assert "3 shards" in capsys.readouterr().out
    copy = LogitStore.open(out)
    assert copy.digest == store.digest
    assert verify_store(copy).problems == []
    kept = stored_tokenizer(copy.objects)
    assert kept is not None
    assert kept == stored_tokenizer(store.objects)
    assert [read_file(copy.objects, file) for file in kept.files] == [b"{}", b"{}"]
    assert not (out / "plan").exists()
    assert main(["copy", store.uri, str(out), "--with-job"]) == 0
    assert (out / "plan/head.json").exists()
    assert not (out / "logs").exists()


@pytest.mark.filterwarnings("ignore::logitstore.common.store_warning.StoreWarning")
def test_from_a_web_server_to_s3_and_back(store: LogitStore, tmp_path: Path) -> None:
    store.compact()
    with run_dialect("plain") as server, run_web_server(Path(store.uri), WebHabits(lists=False)) as web:
        target = Objects("s3://b/copy", server.storage_options)
        copy_store(LogitStore.open(web.url), target)
        copy = LogitStore.open("s3://b/copy", storage_options=server.storage_options)
        assert copy.digest == store.digest
        assert copy_store(copy, Objects(tmp_path / "back")).num_shards == 3
    assert LogitStore.open(tmp_path / "back").digest == store.digest


def test_a_copy_to_where_nothing_may_be_listed_says_that_all_is_put_again(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a web server that takes PUT; an S3 key that may not list is refused before, in its own words."""

    def refused(prefix: str = "") -> list[ObjectInfo]:
        raise AccessRefusedError(f"no list of {prefix!r}")

    store.compact()
    target = Objects(tmp_path / "copy")
    monkeypatch.setattr(target, "list_info", refused)
    for _ in range(2):
        with pytest.warns(StoreWarning, match="what an earlier copy put there is put again"):
            assert copy_store(store, target).num_copied > 3
    assert LogitStore.open(tmp_path / "copy").digest == store.digest


def test_a_copy_that_was_cut_off_is_refused_and_goes_on(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, copied = copying._copy_shard, []

    def failing(source, target, name, checksums):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(name)
        return real(source, target, name, checksums)

    monkeypatch.setattr(copying, "_copy_shard", failing)
    monkeypatch.setattr(copying, "THREADS", 1)
    target = Objects(tmp_path / "copy")
    with pytest.raises(KeyboardInterrupt):
        copy_store(store, target)
    with pytest.raises(IndexLostError):
        LogitStore.open(target.uri)
    monkeypatch.setattr(copying, "_copy_shard", real)
    size = {entry.name: entry.num_bytes for entry in store.shards()}
    assert copy_store(store, target).num_bytes < sum(size.values()) + 20_000 - size[copied[0]]
    assert LogitStore.open(target.uri).digest == store.digest
    store.commit_unit("later", 9, [make_sequence("later")], seconds=0, worker="w")
    copy_store(store, target)
    assert LogitStore.open(target.uri).digest == store.digest, "brought up to date"


def test_a_compaction_in_between_changes_nothing(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copying._copy_shard

    def compacting(*arguments):
        other = LogitStore.open(store.uri)
        other.commit_unit(f"late-{len(other.shards())}", 50 + len(other.shards()), [], seconds=0, worker="w")
        other.compact()
        return real(*arguments)

    digest = store.digest
    monkeypatch.setattr(copying, "_copy_shard", compacting)
    monkeypatch.setattr(copying, "THREADS", 1)
    copy_store(store, Objects(tmp_path / "copy"))
    assert LogitStore.open(tmp_path / "copy").digest == digest
    assert verify_store(LogitStore.open(tmp_path / "copy")).errors == []


def test_a_purge_in_between_is_named_and_what_it_left_is_told(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mirror of a store kept the bytes of what was taken down, and nobody said so."""
    real, out, copied = copying._copy_shard, str(tmp_path / "copy"), list[str]()

    def purged(source, target, name, checksums):
        copied.append(name)
        if len(copied) == 2:
            purge(LogitStore.open(store.uri))
        return real(source, target, name, checksums)

    delete_records(store, frozenset({"record-0", "record-4", "record-8"}), "asked for")
    monkeypatch.setattr(copying, "_copy_shard", purged)
    monkeypatch.setattr(copying, "THREADS", 1)
    assert main(["copy", store.uri, out]) == 3
    assert "is gone, as a purge or new labels of its unit remove it" in capsys.readouterr().err
    assert main(["copy", store.uri, out]) == 0
    assert "1 shard of an earlier copy, which may hold deleted records, stay there" in capsys.readouterr().err
    assert main(["verify", out, "--repair"]) == 0
    assert main(["copy", store.uri, out]) == 0
    assert "earlier copy" not in capsys.readouterr().err
    named = {entry.name for entry in LogitStore.open(out).shards()}
    assert set(Objects(out).list("shards/")) == named


def test_what_is_refused(store: LogitStore, tmp_path: Path) -> None:
    other = LogitStore.create(tmp_path / "other", make_manifest(model="other"))
    for target in (other.objects, store.objects):
        with pytest.raises(StoreExistsError, match="copy to another place"):
            copy_store(store, target)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text('{"pages": []}')
    with pytest.raises(StoreExistsError, match="is of something else and would be replaced"):
        copy_store(store, Objects(tmp_path / "site"))
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.json"]
    shard = store.objects.local_path(store.shards()[0].name)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptShardError, match="run `verify` on the source"):
        copy_store(store, Objects(tmp_path / "copy"))


def test_a_copy_never_takes_labels_back(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given the wrong way round, an old copy replaced the index of the store, and its newer units were gone."""
    copy_store(store, Objects(tmp_path / "copy"))
    copy = LogitStore.open(tmp_path / "copy")
    commit_units(store, [7])
    for compacted in (False, True):
        digest = store.digest
        assert main(["copy", copy.uri, store.uri]) == 2
        told = capsys.readouterr().err
        assert f"{store.uri} has units that {copy.uri} has not (1, such as 'unit-0007')" in told
        assert LogitStore.open(store.uri).digest == digest, compacted
        store.compact()
    copy_store(store, copy.objects)
    assert LogitStore.open(copy.uri).digest == store.digest


def test_a_copy_brings_no_deleted_record_back(store: LogitStore, tmp_path: Path) -> None:
    place = Objects(tmp_path / "copy")
    copy_store(store, place)
    copy = LogitStore.open(place.uri)
    delete_records(copy, frozenset({"record-4"}), "asked for")
    purge(copy)
    with pytest.raises(StoreExistsError, match=r"deleted from .*copy \(1\) and not from .*store,"):
        copy_store(store, place)
    assert copy.digest == LogitStore.open(place.uri).digest
    delete_records(store, frozenset({"record-4"}), "asked for")
    copy_store(store, place)
    purge(store)
    store.uncommit([store.shards()[0].name])
    copy_store(store, place)
    assert LogitStore.open(place.uri).digest == store.digest


def test_a_damaged_copy_is_mended_by_copying_again(store: LogitStore, tmp_path: Path) -> None:
    place = Objects(tmp_path / "copy")
    store.compact()
    copy_store(store, place)
    for name in place.list("index/"):
        place.put(name, b"damaged")
    copy_store(store, place)
    assert LogitStore.open(place.uri).digest == store.digest
    place.delete("manifest.json")
    copy_store(store, place)
    assert LogitStore.open(place.uri).digest == store.digest


@pytest.mark.parametrize("damage", ["longer", "of another store"])
def test_of_an_id_index_a_copy_takes_what_is_one(store: LogitStore, tmp_path: Path, damage: str) -> None:
    """One that had been lengthened was copied up to 2 GiB."""
    store.compact()
    (path,) = Path(store.uri).glob("index/*-ids.bin")
    whole = path.read_bytes()
    os.truncate(path, 10 * 2**30)
    if damage == "of another store":
        path.write_bytes(b"x" * len(whole))
    with pytest.warns(StoreWarning) if damage != "longer" else contextlib.nullcontext():
        copy_store(store, Objects(tmp_path / "copy"))
    found = [one.read_bytes() for one in (tmp_path / "copy").glob("index/*-ids.bin")]
    assert found == ([whole] if damage == "longer" else [])
    assert LogitStore.open(tmp_path / "copy").find(["record-0"])["record-0"] != []


@pytest.mark.skipif(
    os.name != "posix" or os.uname().sysname != "Linux", reason="names are bytes on Linux alone"
)
def test_a_folder_may_have_a_name_that_is_no_text(store: LogitStore, tmp_path: Path, capsys) -> None:
    """Such as a Latin-1 one in a UTF-8 locale: its index could not be mapped, "a defect"."""
    place = str(tmp_path / os.fsdecode(b"caf\xe9"))
    store.compact()
    assert main(["copy", store.uri, place, "--quiet"]) == 0
    assert main(["verify", place]) == 0
    assert main(["export", place, f"{place}.parquet", "--quiet"]) == 0
    assert "no errors" in capsys.readouterr().out
