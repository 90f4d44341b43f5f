"""Compaction keeps what a store holds, at any moment it may be interrupted, and keeps opening cheap."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from logitstore.index import segments as index_segments
from logitstore.index.changes.compaction import compact
from logitstore.index.commits import CommitRecord, commit_name, encode_commit, shard_name
from logitstore.index.committed import CommittedUnits
from logitstore.index.entries import ShardIndex, attempts_of
from logitstore.index.pointer import IndexPointer, SegmentInfo, encode_pointer
from logitstore.manifest.fields import ShardEntry
from logitstore.manifest.reading import manifest_hash
from logitstore.objects.opening import Objects
from logitstore.records import Reject
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.random_labels import make_manifest, make_unit

MANIFEST = manifest_hash(make_manifest())


def make_record(unit_index: int, num_rejects: int = 0) -> CommitRecord:
    attempt = hashlib.blake2b(str(unit_index).encode(), digest_size=8).hexdigest()
    checksum = "blake2b-128:" + hashlib.blake2b(attempt.encode(), digest_size=16).hexdigest()
    unit_id = f"u{unit_index}"
    rejects = tuple(Reject("f", line, f"r{line}", "reason", "kind") for line in range(num_rejects))
    entry = ShardEntry(
        unit_id,
        unit_index,
        shard_name(unit_index, unit_id, attempt),
        3,
        30,
        33,
        4567,
        checksum,
        num_rejects,
        1.5,
        "w",
    )
    return CommitRecord(attempt, MANIFEST, entry, rejects)


def fill(store: LogitStore, units: range) -> None:
    for unit_index in units:
        unit_id, sequences = make_unit(unit_index, 1)
        rejects = (
            [Reject("input.jsonl", unit_index, None, "bad", "invalid_json")] if unit_index % 3 == 0 else []
        )
        store.commit_unit(unit_id, unit_index, sequences, rejects, seconds=1, worker="w")


def test_a_writer_sees_each_unit_once_after_others_compacted(tmp_path: Path) -> None:
    """Its commit reads the index anew, which has the units whose records it knew by then."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    fill(store, range(3))
    writer = LogitStore.open(tmp_path / "store")
    store.compact()
    fill(writer, range(3, 4))
    assert [entry.unit_index for entry in writer.shards()] == [0, 1, 2, 3]
    writer.refresh()
    assert [entry.unit_index for entry in writer.shards()] == [0, 1, 2, 3]


def test_only_units_in_their_own_places_are_found() -> None:
    records = [make_record(unit_index) for unit_index in (7, 2, 5)]
    index = ShardIndex(index_segments.entries_to_table(records))
    assert index.having([(2, "u2"), (5, "u7"), (7, "u7"), (7, "another"), (8, "u8")]) == {"u2", "u7"}
    assert index.having([]) == set()


def test_attempts_are_numbers_of_their_digits() -> None:
    table = index_segments.entries_to_table([make_record(number) for number in range(9)])
    parts = pa.concat_tables([table.slice(2, 4), table.slice(0, 0), table.slice(7)])
    expected = [make_record(number).attempt for number in (2, 3, 4, 5, 7, 8)]
    assert [f"{number:016x}" for number in attempts_of(parts).tolist()] == expected
    assert attempts_of(table.slice(0, 0)).tolist() == []


def test_compaction_changes_nothing_but_the_cost(place: Place) -> None:
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    fill(store, range(7, 0, -1))
    before = (store.digest, list(store.shards()), sorted(reject.line for reject in store.rejects()))
    assert store.compact().num_records == 7
    fresh = LogitStore.open(place.uri, storage_options=place.storage_options)
    for opened in (store, fresh):
        assert (opened.digest, list(opened.shards())) == before[:2]
        assert sorted(reject.line for reject in opened.rejects()) == before[2] == [3, 6]
    assert store.objects.list("commits/") == []
    assert store.compact().num_records == 0
    fill(store, range(8, 10))
    assert store.compact().num_entries == 9
    assert len(store.objects.list("index/")) == 3, "one merged segment, its rejects and its record ids"
    assert sorted(reject.line for reject in store.rejects()) == [3, 6, 9]


@pytest.mark.parametrize("step", ["before the swap", "before the deletion"])
def test_interrupted_compaction_loses_nothing(
    local_place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    fill(store, range(4))
    digest = store.digest
    with monkeypatch.context() as patched:
        target = "put_if_match" if step == "before the swap" else "delete_many"
        patched.setattr(store.objects, target, _die)
        with pytest.raises(KeyboardInterrupt):
            compact(store.objects, MANIFEST)
    assert LogitStore.open(local_place.uri).digest == digest
    assert len(store.objects.list("commits/")) == 4
    result = store.compact()
    assert (result.num_entries, result.num_late) == ((4, 0) if step == "before the swap" else (4, 4))
    assert store.objects.list("commits/") == []
    assert LogitStore.open(local_place.uri).digest == digest


def _die(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_reader_caught_by_compaction_reads_again(
    local_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction between a reader's listing and its reading of the records."""
    store = LogitStore.create(local_place.uri, make_manifest())
    fill(store, range(3))
    reader = CommittedUnits(Objects(local_place.uri), MANIFEST)
    get_many, calls = reader._objects.get_many, []

    def compact_first(names: list[str]) -> list[bytes | None]:
        calls.append(names)
        if len(calls) == 1:
            store.compact()
        return get_many(names)

    monkeypatch.setattr(reader._objects, "get_many", compact_first)
    reader.refresh()
    assert len(calls) == 2
    assert [entry.unit_index for entry in reader.entries()] == [0, 1, 2]


@pytest.mark.slow
def test_segments_stay_few_and_rewrites_rare(tmp_path: Path) -> None:
    """300 compactions of one unit each: like a merge tree, not like a copy of everything each time."""
    objects = Objects(tmp_path)
    written = 0
    put = objects.put

    def counting_put(name: str, data: bytes) -> None:
        nonlocal written
        written += name.startswith("index/")
        put(name, data)

    objects.put = counting_put  # type: ignore[method-assign]
    sizes = []
    for unit_index in range(300):
        record = make_record(unit_index)
        objects.put_if_absent(commit_name(record.shard.unit_id), encode_commit(record))
        compact(objects, MANIFEST)
        units = CommittedUnits(objects, MANIFEST)
        units.refresh()
        sizes.append([info.num_entries for info in units.pointer.segments])
    assert sum(sizes[-1]) == 300
    assert max(len(size) for size in sizes) <= 6
    assert [entry.unit_index for entry in units.entries()] == list(range(300))
    assert len(objects.list("index/")) == len(sizes[-1])


def test_listing_needs_only_what_came_after_compaction(s3_or_local_counting: tuple[Place, list[str]]) -> None:
    place, requests = s3_or_local_counting
    store = LogitStore.create(place.uri, make_manifest())
    fill(store, range(20))
    store.compact()
    fill(store, range(20, 22))
    requests.clear()
    reader = LogitStore.open(place.uri)
    assert len(reader.shards()) == 22
    assert sorted(requests) == [
        "commits/unit-0020.json", "commits/unit-0021.json", "index.json", "manifest.json",
    ]  # fmt: skip
    requests.clear()
    fill(store, range(22, 23))
    requests.clear()
    reader.refresh()
    assert requests == ["index.json", "commits/unit-0022.json"]


@pytest.fixture
def s3_or_local_counting(local_place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, list[str]]:
    from logitstore.objects.local import LocalBackend

    requests: list[str] = []
    read = LocalBackend.get_range

    def counting(self: LocalBackend, name: str, start: int, end: int | None) -> bytes:
        requests.append(name)
        return read(self, name, start, end)

    monkeypatch.setattr(LocalBackend, "get_range", counting)
    return local_place, requests


def write_large_index(folder: Path, num_units: int, num_segments: int) -> None:
    """An index as compaction leaves it, of `num_units` units, without their shards."""
    LogitStore.create(folder, make_manifest())
    objects = Objects(folder)
    infos = []
    for part in np.array_split(np.arange(num_units), num_segments):
        count = len(part)
        random = np.random.default_rng(int(part[0])).bytes(24 * count)
        columns = {
            "unit_index": pa.array(part),
            "unit_id": pa.array([f"{index:016x}" for index in part.tolist()]),
            "attempt": pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), count, [None, pa.py_buffer(random[: 8 * count])]),
            "has_shard": pa.array(np.ones(count, bool)),
            **{name: pa.array(np.full(count, 4096)) for name in ("num_sequences", "num_rows", "num_tokens", "num_bytes")},
            "checksum": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(random[8 * count :])]),
            "num_rejects": pa.array(np.zeros(count, np.int64)),
            "seconds": pa.array(np.ones(count)),
            "worker": pa.array(["actor-1@node-17"] * count),
            "committed_sec": pa.array(np.ones(count)),
        }  # fmt: skip
        data = index_segments.write_segment(pa.table(columns, schema=index_segments.ENTRY_SCHEMA))
        name = f"index/{len(infos):016x}.arrow"
        objects.put(name, data)
        infos.append(SegmentInfo(name, count, len(data), index_segments.checksum(data), "", 0, 0, ""))
    objects.put("index.json", encode_pointer(IndexPointer(1, MANIFEST, tuple(infos))))


_OPEN_AND_REPORT = """
import json, resource, sys, time
import psutil
from logitstore.store import LogitStore
from logitstore.objects.opening import Objects
process = psutil.Process()
LogitStore.open(sys.argv[2])  # imports and first use are not what is measured
before = process.memory_full_info().uss
start = time.perf_counter()
store = LogitStore.open(sys.argv[1])
shards = store.shards()
total = int(shards.column("num_rows").sum())
opened = time.perf_counter() - start
uss = process.memory_full_info().uss - before
start = time.perf_counter()
digest = store.digest
digested = time.perf_counter() - start
start = time.perf_counter()
entry = shards[len(shards) // 2]
found = shards.find(entry.unit_index, entry.unit_id)[0] == entry
point = time.perf_counter() - start
start = time.perf_counter()
count = sum(1 for _ in shards[:100_000])
print(json.dumps({"units": len(shards), "total": total, "open_sec": opened, "uss_bytes": uss, "found": found,
                  "digest_sec": digested, "lookup_sec": point, "entries_sec": time.perf_counter() - start, "count": count}))
"""


@pytest.mark.slow
def test_a_million_units_open_in_seconds_and_little_memory(tmp_path: Path) -> None:
    figures = []
    LogitStore.create(tmp_path / "warm", make_manifest())
    for num_units in (10_000, 1_000_000):
        folder = tmp_path / str(num_units)
        write_large_index(folder, num_units, num_segments=10)
        output = subprocess.run(
            [sys.executable, "-c", _OPEN_AND_REPORT, str(folder), str(tmp_path / "warm")], check=True, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout  # fmt: skip
        figures.append(json.loads(output))
        print(output)
    largest = figures[-1]
    assert (largest["units"], largest["total"], largest["found"]) == (1_000_000, 4_096_000_000, True)
    assert largest["open_sec"] < 10
    assert largest["uss_bytes"] < 250 * 2**20
    assert largest["uss_bytes"] - figures[0]["uss_bytes"] < 250 * 990_000, "bytes per unit"
