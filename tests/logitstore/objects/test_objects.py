"""One set of promises, kept by a local directory and by a real S3 server."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from logitstore.errors import ObjectNotFoundError, ObjectStoreError, UnsafeNameError, UnsupportedInputError
from logitstore.objects.addresses import normalise_uri
from logitstore.objects.opening import MAX_TAGGED_BYTES, Objects
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.random_labels import make_manifest


@pytest.fixture
def objects(place: Place) -> Objects:
    return Objects(place.uri, place.storage_options)


def test_put_get_replace_and_ranges(objects: Objects) -> None:
    objects.put("shards/a.arrow", b"0123456789")
    assert objects.get("shards/a.arrow") == b"0123456789"
    assert objects.get_range("shards/a.arrow", 2, 5) == b"234"
    assert objects.get_range("shards/a.arrow", 8, 50) == b"89"
    assert objects.get_range("shards/a.arrow", 50, 60) == b""
    assert objects.get("shards/a.arrow", max_bytes=3) == b"0123"
    objects.put("shards/a.arrow", b"new")
    assert objects.get("shards/a.arrow") == b"new"
    assert objects.stat("shards/a.arrow").num_bytes == 3
    objects.put("empty", b"")
    assert objects.get("empty") == b""


def test_what_a_block_writes_is_put_whole_or_not_at_all(objects: Objects) -> None:
    with objects.writing("part.bin") as file:
        file.write(b"one, ")
        assert not objects.exists("part.bin")
        file.write(b"two")
    assert objects.get("part.bin") == b"one, two"

    def stop_halfway() -> None:
        with objects.writing("part.bin") as file:
            file.write(b"other")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        stop_halfway()
    assert objects.get("part.bin") == b"one, two"
    assert objects.list() == ["part.bin"]
    assert objects.list_temporary() == []


def test_missing_objects(objects: Objects) -> None:
    for call in (objects.get, objects.stat, objects.get_with_etag):
        with pytest.raises(ObjectNotFoundError, match=r"commits/none\.json"):
            call("commits/none.json")
    with pytest.raises(FileNotFoundError):
        objects.open("commits/none.json").read()
    assert not objects.exists("commits/none.json")
    assert objects.list("commits/") == []
    objects.delete("commits/none.json")
    objects.put("commits/one.json", b"1")
    assert objects.get_many(["commits/none.json", "commits/one.json"]) == [None, b"1"]
    assert objects.get_many([]) == []


def test_put_if_absent_keeps_the_first(objects: Objects) -> None:
    assert objects.put_if_absent("commits/u.json", b"first")
    assert not objects.put_if_absent("commits/u.json", b"second")
    assert objects.get("commits/u.json") == b"first"


def test_put_if_match_replaces_only_what_was_seen(objects: Objects) -> None:
    assert objects.put_if_absent("lease.json", b"a")
    data, etag = objects.get_with_etag("lease.json")
    assert data == b"a"
    assert objects.put_if_match("lease.json", b"b", etag)
    assert not objects.put_if_match("lease.json", b"c", etag)
    assert objects.get("lease.json") == b"b"
    objects.delete("lease.json")
    assert not objects.put_if_match("lease.json", b"d", etag)
    assert not objects.exists("lease.json")


def test_what_is_swapped_is_read_up_to_a_limit(objects: Objects) -> None:
    objects.put("lease.json", bytes(MAX_TAGGED_BYTES + 1000))
    assert len(objects.get_with_etag("lease.json")[0]) == MAX_TAGGED_BYTES + 1
    exact = bytes(range(256)) * (MAX_TAGGED_BYTES // 256)
    objects.put("lease.json", exact)
    assert objects.get_with_etag("lease.json")[0] == exact


def test_list_is_sorted_and_by_folder(objects: Objects) -> None:
    for name in (
        "commits/b.json",
        "commits-other/x",
        "commits/a.json",
        "commits/sub/c.json",
        "manifest.json",
    ):
        objects.put(name, name.encode())
    assert objects.list("commits/") == ["commits/a.json", "commits/b.json", "commits/sub/c.json"]
    assert len(objects.list()) == 5
    assert objects.list_info("commits/")[0].num_bytes == len("commits/a.json")
    assert objects.list_info()[0].modified_sec > 1.7e9
    objects.delete_many(["commits/a.json", "commits/nothing.json", "commits/b.json"])
    assert objects.list("commits/") == ["commits/sub/c.json"]
    with pytest.raises(ValueError, match="end with a slash"):
        objects.list("commits")


def test_open_is_seekable(objects: Objects) -> None:
    data = bytes(range(256)) * 1024
    objects.put("shards/x.arrow", data)
    for num_bytes in (None, len(data)):
        with objects.open("shards/x.arrow", num_bytes=num_bytes) as file:
            assert file.seek(-10, 2) == len(data) - 10
            assert file.read() == data[-10:]
            file.seek(1000)
            assert file.read(100_000) == data[1000:101_000]
            assert file.tell() == 101_000


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/./b",
        ".hidden",
        "a/.tmp-1",
        "a\\b",
        "a\nb",
        "a b",
        "é",
        "x" * 513,
        "a/",
        "C:x",
    ],
)
def test_names_that_climb_or_confuse_are_refused(tmp_path: Path, name: str) -> None:
    objects = Objects(tmp_path / "store")
    for call in (objects.get, objects.stat, objects.delete, objects.open):
        with pytest.raises(UnsafeNameError):
            call(name)
    with pytest.raises(UnsafeNameError):
        objects.put(name, b"")
    assert not (tmp_path / "store").exists()


def _count_wins(place: Place, barrier, queue, writer: int) -> None:
    objects = Objects(place.uri, place.storage_options)
    wins = []
    for turn in range(15):
        barrier.wait()
        if objects.put_if_absent(f"race/{turn}", str(writer).encode()):
            wins.append(turn)
    queue.put((writer, wins))


@pytest.mark.slow
def test_one_of_many_processes_creates(place: Place) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitstore.objects.opening"])
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_count_wins, args=(place, barrier, queue, index)) for index in range(3)
    ]
    for process in processes:
        process.start()
    wins = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert sorted(turn for turns in wins.values() for turn in turns) == list(range(15))
    objects = Objects(place.uri, place.storage_options)
    for writer, turns in wins.items():
        assert all(objects.get(f"race/{turn}") == str(writer).encode() for turn in turns)


def _increment(place: Place, times: int) -> None:
    objects = Objects(place.uri, place.storage_options)
    for _ in range(times):
        while True:
            data, etag = objects.get_with_etag("counter")
            if objects.put_if_match("counter", str(int(data) + 1).encode(), etag):
                break


@pytest.mark.slow
def test_compare_and_swap_loses_no_update(place: Place) -> None:
    objects = Objects(place.uri, place.storage_options)
    objects.put("counter", b"0")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["logitstore.objects.opening"])
    processes = [context.Process(target=_increment, args=(place, 10)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert objects.get("counter") == b"30"


def test_a_pickled_copy_reaches_the_same_place(place: Place) -> None:
    objects = Objects(place.uri, place.storage_options)
    objects.put("a", b"1")
    assert pickle.loads(pickle.dumps(objects)).get("a") == b"1"


def _read_in_child(objects: Objects, queue) -> None:
    queue.put(objects.get("a"))


def test_a_forked_child_reads(place: Place) -> None:
    objects = Objects(place.uri, place.storage_options)
    objects.put("a", b"1")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(objects, queue))
    process.start()
    assert queue.get(timeout=30) == b"1"
    process.join()


def test_unfinished_local_writes_are_listed_apart(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    objects.put("shards/a.arrow", b"1")
    (tmp_path / "shards" / ".tmp-123-abc").write_bytes(b"half")
    assert objects.list() == ["shards/a.arrow"]
    assert [info.name for info in objects.list_temporary()] == ["shards/.tmp-123-abc"]
    objects.delete_temporary(objects.list_temporary())
    assert objects.list_temporary() == []


@pytest.mark.s3
def test_errors_hold_no_secrets_and_come_soon(s3_place: Place) -> None:
    options = {**(s3_place.storage_options or {}), "secret": "wrong-secret-value"}
    with pytest.raises(ObjectStoreError) as caught:
        Objects(s3_place.uri, options).put("a", b"1")
    assert "wrong-secret-value" not in str(caught.value)
    assert "testkey" not in str(caught.value)
    assert caught.value.__cause__ is None
    dead = {**options, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}}
    with pytest.raises(ObjectStoreError, match="bounded retries"):
        Objects(s3_place.uri, dead).get("a")


def test_a_full_disk_is_told_with_the_object_that_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error of writing names no file: of a copy or merge it was not said which disk is full."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    objects = Objects(tmp_path / "store")
    for put in (objects.put, objects.put_if_absent):
        with pytest.raises(OSError, match="No space left") as refused:
            put("manifest.json", b"{}")
        assert refused.value.filename == str(tmp_path / "store" / "manifest.json")
    assert objects.list_temporary() == []


def test_uris() -> None:
    assert normalise_uri("s3://bucket/x/") == "s3://bucket/x"
    assert normalise_uri("file:///tmp/x/") == normalise_uri("file://localhost/tmp/x") == "/tmp/x"
    assert normalise_uri("local:///tmp/x") == "/tmp/x"
    access_point = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/point/x"
    assert normalise_uri(access_point) == access_point
    assert normalise_uri("relative").startswith("/")
    with pytest.raises(UnsupportedInputError, match="credentials") as caught:
        normalise_uri("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    for empty in ("", " ", "file://"):  # else the present folder
        with pytest.raises(UnsupportedInputError, match="address of a store is empty"):
            normalise_uri(empty)


def test_memory_file_system_for_reading_and_one_process() -> None:
    objects = Objects("memory://objects-test/store")
    assert objects.put_if_absent("a", b"1")
    assert not objects.put_if_absent("a", b"2")
    assert objects.get_range("a", 0, 1) == b"1"
    assert objects.list() == ["a"]
    with pytest.raises(ObjectStoreError, match="replace an object only if it is unchanged"):
        objects.put_if_match("a", b"3", "etag")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3:/bucket/x", "write s3://bucket/x, or ./s3:/... for such a folder"),
        ("s3:/me:SECRET@bucket/x", "write s3://***@bucket/x"),
        ("file:/a/b", "write /a/b"),
        ("hf:datasets/a/b", "write hf://datasets/a/b"),
        ("gs://", "names no bucket"),
        ("zip:///a/b.zip", "unpack it"),
        ("http://[::1/x", "is no URL (Invalid IPv6 URL); correct it"),
        ("http://h:99999/x", "is no URL (Port out of range"),
        ("s3://b/x/../y", "has a part '.' or '..'"),
        ("file:///no/such/a%20b", "write the path itself, without file://, as in '/no/such/a b'"),
        ("zip://::/a/b.zip", "is a chain of addresses"),
        ("simplecache::http://h/x", "is a chain of addresses"),
        ("s3://b/x::gs://c/y", "is a chain of addresses"),
        (
            "abfss://c@account.dfs.core.windows.net/x",
            'write abfs://c/x and give the account in the storage options: {"account_name": "account"}',
        ),
        ("sftp://me@host/x", 'in the storage options: {"username"'),
    ],
)
def test_an_address_that_is_nearly_one(uri: str, says: str, tmp_path: Path, monkeypatch) -> None:
    """A folder named "s3:" was made, Azure's own form was said to hold credentials, chains "failed"."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedInputError) as caught:
        LogitStore.create(uri, make_manifest())
    assert says in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_named_so_and_schemes_are_of_either_case(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise_uri("./s3:/x") == f"{tmp_path}/s3:/x"
    (tmp_path / "s3:").mkdir()
    assert normalise_uri("s3:/x") == f"{tmp_path}/s3:/x"
    assert normalise_uri("FILE:///a/b") == "/a/b"
    assert normalise_uri("S3://Bucket/X/") == "s3://Bucket/X"
    assert normalise_uri("http://[::1]:80/x") == "http://[::1]:80/x"
    assert normalise_uri("s3://b/run::1/store/") == "s3://b/run::1/store"
