"""Commit records, indexes and codebook pointers that lie: one error per way, nothing followed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codebook_objects import CURRENT_CODEBOOKS
from logitstore.errors import (
    CorruptManifestError,
    CorruptShardError,
    ObjectNotFoundError,
    StoreError,
    UnsafeNameError,
    UnsupportedFormatError,
)
from logitstore.index import committed as index
from logitstore.index import segments as index_segments
from logitstore.index.commits import decode_commit, encode_commit
from logitstore.index.pointer import INDEX_NAME, IndexPointer, SegmentInfo, decode_pointer, encode_pointer
from logitstore.manifest.reading import encode_manifest
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.conftest import Place
from tests.logitstore.index.test_compaction import MANIFEST, make_record
from tests.logitstore.random_labels import commit_units, make_manifest, make_unit

WHAT = "commits/u3.json"
RECORD = make_record(3, num_rejects=2)


def record_with(**changes: Any) -> bytes:
    value = json.loads(encode_commit(RECORD))
    for path, change in changes.items():
        place, name = (
            (value["shard"], path.removeprefix("shard_")) if path.startswith("shard_") else (value, path)
        )
        place[name] = change
    return json.dumps(value).encode()


def test_a_record_round_trips() -> None:
    assert decode_commit(encode_commit(RECORD), what=WHAT) == RECORD


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shard_name": "../../etc/passwd"}, UnsafeNameError, "must be shards/00000003-u3-"),
        ({"shard_name": "/etc/passwd"}, UnsafeNameError, "must be shards/"),
        ({"shard_name": "shards/00000004-u4-0000000000000000.arrow"}, UnsafeNameError, "must be shards/"),
        ({"shard_unit_id": "../u"}, UnsafeNameError, "unit id '../u'"),
        ({"shard_unit_id": "u4", "shard_name": ""}, CorruptManifestError, "must have no sequences"),
        ({"attempt": "xyz"}, CorruptManifestError, "attempt 'xyz' must be 16 hexadecimal digits"),
        ({"shard_unit_index": -1}, CorruptManifestError, "unit_index -1 must lie in"),
        ({"shard_unit_index": 2**62}, CorruptManifestError, "unit_index"),
        ({"shard_num_rows": -5}, CorruptManifestError, "num_rows -5 must not be negative"),
        ({"shard_num_bytes": 2**70}, CorruptManifestError, "does not fit 63 bits"),
        ({"shard_num_rows": 1.5}, CorruptManifestError, "num_rows is float 1.5"),
        ({"shard_seconds": -1.0}, CorruptManifestError, "seconds -1.0 must not be negative"),
        ({"shard_checksum": "md5:0"}, CorruptManifestError, "checksum 'md5:0' must be 'blake2b-128:'"),
        ({"shard_num_rejects": 1}, CorruptManifestError, "lists 2 rejects but counts 1"),
        ({"rejects": [{"file": "f"}], "shard_num_rejects": 1}, CorruptManifestError, "lacks the field 'kind'"),
        ({"format_version": 9}, UnsupportedFormatError, "format version 9"),
        ({"surprise": 1}, CorruptManifestError, "unknown field 'surprise'"),
        ({"shard_worker": "\ud800"}, CorruptManifestError, "surrogates not allowed"),
    ],
)  # fmt: skip
def test_each_bad_record_has_its_message(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decode_commit(record_with(**changes), what=WHAT)


def test_a_record_under_another_name() -> None:
    with pytest.raises(CorruptManifestError, match="holds the record of unit u3, not its own"):
        decode_commit(encode_commit(RECORD), what="commits/u9.json")


SEGMENT = SegmentInfo("index/00000000000000aa.arrow", 1, 100, "blake2b-128:" + "0" * 32, "", 0, 0, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x.arrow"}, "names must be index/"),
        ({"name": "shards/00000000000000aa.arrow"}, "names must be index/"),
        ({"rejects_name": "/etc/passwd"}, "names must be index/"),
        ({"num_bytes": 2**50}, "claims a size outside"),
        ({"num_bytes": -1}, "claims a size outside"),
        ({"num_entries": 2**40}, "claims a size outside"),
    ],
)
def test_each_bad_index_pointer_has_its_message(changes: dict[str, Any], message: str) -> None:
    data = encode_pointer(IndexPointer(1, MANIFEST, (dataclasses.replace(SEGMENT, **changes),)))
    with pytest.raises(CorruptManifestError, match=message):
        decode_pointer(data)


def test_an_index_that_names_a_segment_twice() -> None:
    with pytest.raises(CorruptManifestError, match="names a segment twice"):
        decode_pointer(encode_pointer(IndexPointer(1, MANIFEST, (SEGMENT, SEGMENT))))


def stream(table: pa.Table, **options: Any) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def entries(*units: int) -> pa.Table:
    return index_segments.entries_to_table([make_record(unit) for unit in units])


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    position = table.schema.get_field_index(name)
    return table.set_column(
        position, table.schema.field(name), pa.array(values, table.schema.field(name).type)
    )


TABLE = entries(1, 2)
BOMB = entries(*range(2000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pa.py_buffer(b""), "is not an index segment"),
        (pa.py_buffer(b"ARROW1" * 10), "is not an index segment"),
        (stream(TABLE)[:-40], "is not an index segment"),
        (stream(TABLE.select(["unit_id"])), "its columns are not those of this format"),
        (stream(BOMB, compression="zstd"), "is compressed, which this format forbids"),
        (stream(entries(1)), "has 1 rows, index.json says 2"),
        (stream(replaced(TABLE, "unit_index", [2, 2])), "must ascend without repeats"),
        (stream(replaced(TABLE, "unit_index", [-2, 2])), "unit_index holds a negative number"),
        (stream(replaced(TABLE, "num_bytes", [-2, 2])), "num_bytes holds a negative number"),
        (stream(replaced(TABLE, "unit_id", ["../../x", "u"])), "characters that no object name may have"),
        (stream(replaced(TABLE, "unit_id", ["", "u"])), "characters that no object name may have"),
        (stream(replaced(TABLE, "unit_id", ["a" * 129, "u"])), "characters that no object name may have"),
        (stream(replaced(TABLE, "seconds", [float("nan"), 1.0])), "seconds holds a number that is not finite"),
        (stream(replaced(TABLE, "worker", [None, "w"])), "column worker has nulls"),
    ],
    ids=range(14),
)  # fmt: skip
def test_each_bad_segment_has_its_message(data: pa.Buffer, message: str) -> None:
    with pytest.raises(CorruptManifestError, match=message):
        index_segments.read_entries(data, what="index/x.arrow", num_entries=2)


@pytest.fixture
def store(local_place: Place) -> LogitStore:
    store = LogitStore.create(local_place.uri, make_manifest())
    commit_units(store, range(2))
    store.compact()
    return store


def test_a_segment_changed_on_disk(store: LogitStore) -> None:
    path = store.objects.local_path(
        next(name for name in store.objects.list("index/") if name.endswith(".arrow"))
    )
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")
    with pytest.raises(CorruptManifestError, match="does not match its size or checksum"):
        LogitStore.open(store.uri)
    path.unlink()
    with pytest.raises(ObjectNotFoundError, match="does not exist"):
        LogitStore.open(store.uri)


def test_two_units_in_one_place(store: LogitStore) -> None:
    _, sequences = make_unit(5)
    rival = LogitStore.open(store.uri)
    store.commit_unit("unit-0005", 5, sequences, seconds=0, worker="w")
    data = rival.objects.get("commits/unit-0005.json").replace(b"unit-0005", b"unit-5555")
    rival.objects.put("commits/unit-5555.json", data)
    hurt = LogitStore.open(store.uri)
    message = r"'unit-0005', 'unit-5555'\] of the store have one unit_index, 5"
    with pytest.raises(CorruptManifestError, match=message):
        hurt.shards()
    with pytest.raises(CorruptManifestError, match=message):
        hurt.compact()  # refused before the index names both, which no reader could undo
    rival.objects.delete("commits/unit-5555.json")
    hurt.compact()
    assert [entry.unit_id for entry in hurt.shards()][-1] == "unit-0005"


def test_a_commit_record_beyond_its_limit_is_not_read(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects.put("commits/huge.json", b"x" * 2000)
    monkeypatch.setattr(index, "MAX_COMMIT_BYTES", 1999)
    monkeypatch.setattr(Objects, "get_many", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CorruptManifestError, match=r"commits/huge\.json has 2000 bytes, a commit record"):
        LogitStore.open(store.uri)


def test_a_shard_of_another_teacher(store: LogitStore, tmp_path: Path) -> None:
    """Bytes of a store with another K in the place of this one's shard."""
    other = LogitStore.create(tmp_path / "other", make_manifest(4, model="other"))
    unit_id, sequences = make_unit(0, top_k=4)
    entry, _ = other.commit_unit(unit_id, 0, sequences, seconds=0, worker="w")
    here = store.shards()[0]
    store.objects.put(here.name, other.objects.get(entry.name))
    with pytest.raises(CorruptShardError, match="another store"):
        list(store.open_shard(here).iter_sequences())
    assert next(problem.kind for problem in verify_store(store).errors) in ("wrong_size", "corrupt_shard")


@pytest.mark.parametrize("what", ["index.json", "commits/unit-0005.json"])
def test_a_manifest_swapped_for_another_teachers(store: LogitStore, what: str) -> None:
    """Same vocabulary, same K: only the names of the manifest tell."""
    if what != "index.json":
        store = LogitStore.create(Path(store.uri).parent / "fresh", make_manifest())
        store.commit_unit("unit-0005", 5, make_unit(5)[1], seconds=0, worker="w")
        store.objects.delete("index.json")
    store.objects.put("manifest.json", encode_manifest(make_manifest(model="other")))
    with pytest.raises(CorruptManifestError, match=f"{what} was made for the manifest"):
        LogitStore.open(store.uri)


def test_a_record_of_another_teacher_is_no_winner(store: LogitStore, tmp_path: Path) -> None:
    other = LogitStore.create(tmp_path / "other", make_manifest(model="other"))
    unit_id, sequences = make_unit(5)
    other.commit_unit(unit_id, 5, sequences, seconds=0, worker="w")
    name = f"commits/{unit_id}.json"
    store.objects.put(name, other.objects.get(name))
    with pytest.raises(CorruptManifestError, match=f"{name} was made for the manifest"):
        store.commit_unit(unit_id, 5, sequences, seconds=0, worker="w")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"hash": "../../x", "format_version": 1}, "must be 'blake2b-128:'"),
        ({"hash": "blake2b-128:" + "0" * 32, "format_version": 3}, "format version 3"),
        ({"format_version": 1}, "lacks the field 'hash'"),
    ],
)
def test_each_bad_codebook_pointer(store: LogitStore, value: dict[str, Any], message: str) -> None:
    store.objects.put(CURRENT_CODEBOOKS, json.dumps(value).encode())
    with pytest.raises(StoreError, match=message):
        LogitStore.open(store.uri).codebooks()


def test_codebooks_under_anothers_name(store: LogitStore) -> None:
    from logitstore.codec.codebooks import identity_codebook

    store.objects.put("codebooks/" + "0" * 32 + ".bin", identity_codebook(101).to_bytes())
    pointer = {"hash": "blake2b-128:" + "0" * 32, "format_version": 1}
    store.objects.put(CURRENT_CODEBOOKS, json.dumps(pointer).encode())
    with pytest.raises(CorruptManifestError, match="holds a codebook set with the hash"):
        LogitStore.open(store.uri).codebooks()


def test_foreign_objects_do_not_stop_a_reader(store: LogitStore) -> None:
    folder = Path(store.uri, "commits")
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("hello")
    (folder / ".DS_Store").write_text("hello")
    assert len(LogitStore.open(store.uri).shards()) == 2


VALID = encode_commit(RECORD)
SEGMENT_BYTES = index_segments.write_segment(entries(1, 2, 3))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(VALID)), st.binary(max_size=30), st.integers(0, 30))
def test_damaged_records_are_taken_or_refused(start: int, noise: bytes, cut: int) -> None:
    with contextlib.suppress(StoreError):
        decode_commit(VALID[:start] + noise + VALID[start + cut :], what=WHAT)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SEGMENT_BYTES)), st.binary(max_size=16), st.integers(0, 16))
def test_damaged_segments_are_taken_or_refused(start: int, noise: bytes, cut: int) -> None:
    data = SEGMENT_BYTES[:start] + noise + SEGMENT_BYTES[start + cut :]
    try:
        table = index_segments.read_entries(pa.py_buffer(data), what="index/x.arrow", num_entries=3)
        index_segments.table_to_entries(table)
    except StoreError:
        pass


def test_index_json_is_no_other_file(store: LogitStore) -> None:
    store.objects.put(INDEX_NAME, io.BytesIO(b"{}").read())
    with pytest.raises(CorruptManifestError, match="format_version is None"):
        LogitStore.open(store.uri)
