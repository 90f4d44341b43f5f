"""The id index of segments: few bytes are read for a record, and what it says is what the shards hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.servers.web import WebHabits, run_web_server
from logitstore.__main__ import main
from logitstore.codebook_objects import CURRENT_CODEBOOKS
from logitstore.errors import CorruptManifestError
from logitstore.exchange.merge import merge_stores
from logitstore.index.ids import id_index
from logitstore.index.ids.building import id_hashes
from logitstore.index.ids.id_index import ENTRY, IdIndex, encode_ids
from logitstore.index.pointer import SegmentInfo
from logitstore.objects.local import LocalBackend
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store
from logitstore.rows.where import parse_selection, select_ids
from logitstore.store import LogitStore
from logitstore.tools.copying import copy_store
from logitstore.tools.deletion import delete_records
from logitstore.tools.garbage import repair
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence, make_unit

SEGMENT = SegmentInfo("index/0123456789abcdef.arrow", 3, 100, "blake2b-128:" + "ab" * 16, "", 0, 0, "")


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Nine units of three records, in two segments and two records of units."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit_index in range(9):
        commit_units(store, [unit_index])
        if unit_index in (5, 6):
            store.compact()
    return store


def check(store: LogitStore, num_indexed: int) -> None:
    """Lookups agree with the shards, `num_indexed` segments have an id index, and `verify` is content."""
    fresh = LogitStore.open(store.uri)
    expected = [one.record_id for one in fresh]
    asked = [f"record-{number}" for number in range(30)]
    assert {name: len(some) for name, some in fresh.find(asked).items()} == {
        name: expected.count(name) for name in asked
    }
    assert (
        sum(IdIndex.open(store.objects, info) is not None for info, _ in fresh.index_segments())
        == num_indexed
    )
    findings = verify_store(fresh, grace_sec=-10)
    assert findings.errors == []
    assert [one.where for one in findings.problems if "-ids" in one.where] == []


def test_it_stays_right_whatever_happens_to_the_store(store: LogitStore, tmp_path: Path) -> None:
    check(store, 2)
    delete_records(store, frozenset({"record-4", "record-25"}), "asked for")
    check(store, 1)
    store.uncommit([store.shards()[2].name])
    check(store, 1)
    unit_id, sequences = make_unit(2)
    store.commit_unit(unit_id, 2, sequences[::-1], seconds=0, worker="again, in another order")
    check(store, 1)
    store.compact()
    check(store, len(store.index_segments()))
    copy_store(store, Objects(tmp_path / "copy"))
    check(LogitStore.open(tmp_path / "copy"), len(store.index_segments()))
    purge(store)
    check(store, 1)
    check(merge_stores([store], str(tmp_path / "merged")), 1)
    publish_store(store, Objects(tmp_path / "public"), CardSettings())
    check(LogitStore.open(tmp_path / "public"), 1)
    LogitStore.rebuild(store.uri)
    store.refresh()
    repair(store, verify_store(store, grace_sec=-10))
    check(store, 1)


def test_a_store_without_it_is_read_and_gets_it_by_compact(store: LogitStore) -> None:
    names = [name for name in store.objects.list("index/") if id_index.segment_of(name)]
    assert len(names) == 2
    store.objects.delete_many(names)
    check(store, 0)
    assert main(["compact", store.uri, "--quiet"]) == 0
    check(store, len(LogitStore.open(store.uri).index_segments()))


def test_one_of_an_older_segment_is_not_believed(store: LogitStore) -> None:
    first, second = (info for info, _ in store.index_segments())
    store.objects.put(id_index.ids_name(first.name), store.objects.get(id_index.ids_name(second.name)))
    check(store, 1)


@pytest.mark.slow
def test_a_lookup_over_http_reads_less_than_a_hundredth(tmp_path: Path) -> None:
    """Opening the store included; and so do `--ids` and a batch of neighbours."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    pattern = [make_sequence(f"pattern-{place}", length=30) for place in range(64)]
    for unit_index in range(300):
        names = (f"{unit_index}-{place}" for place in range(64))
        sequences = [
            dataclasses.replace(one, record_id=name) for one, name in zip(pattern, names, strict=True)
        ]
        store.commit_unit(f"u{unit_index}", unit_index, sequences, seconds=0, worker="w")
    store.compact()
    total = int(store.shards().column("num_bytes").sum())
    listed = tmp_path / "ids.txt"
    listed.write_text("7-7\n7-8\nnobody\n")
    with run_web_server(tmp_path / "store", WebHabits()) as server:
        read = {}
        for what in ("one", "batch", "selection"):
            server.sent_bytes = 0
            far = LogitStore.open(server.url)
            if what == "one":
                assert far["171-13"].record_id == "171-13"
            elif what == "batch":
                assert [one.record_id for one in far[["171-13", "171-14"]]] == ["171-13", "171-14"]
            else:
                assert [one.record_id for one in select_ids(listed).sequences(far)] == ["7-7", "7-8"]
            read[what] = server.sent_bytes / total
    assert max(read.values()) < 0.01, read


def test_few_ids_open_only_their_shards(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.compact()
    opened: list[str] = []
    open_object = LocalBackend.open

    def opening(self: LocalBackend, name: str, num_bytes: int | None, buffer_bytes: int):
        opened.append(name)
        return open_object(self, name, num_bytes, buffer_bytes)

    monkeypatch.setattr(LocalBackend, "open", opening)
    selection = parse_selection("record_id in (record-5, record-20) and num_tokens > 3")
    assert [one.record_id for one in selection.sequences(store)] == ["record-5", "record-20"]
    assert len([name for name in opened if name.startswith("shards/")]) == 2
    opened.clear()
    alone = parse_selection("record_id = record-11")
    assert [one.record_id for one in alone.sequences(store)] == ["record-11"]
    assert len([name for name in opened if name.startswith("shards/")]) == 1
    either = parse_selection("record_id in (record-5) or num_tokens > 3")
    assert len(list(either.sequences(store))) == 27
    many = parse_selection(f"record_id in ({', '.join(f'record-{number}' for number in range(12, 24))})")
    assert [one.record_id for one in many.sequences(store)] == [
        f"record-{number}" for number in range(12, 24)
    ]


def test_a_damaged_one_is_refused_and_verify_says_so(store: LogitStore) -> None:
    info = store.index_segments()[0][0]
    path = store.objects.local_path(id_index.ids_name(info.name))
    good = path.read_bytes()
    for place in (0, 40, id_index.HEADER.size + 3, len(good) - 1):
        data = bytearray(good)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptManifestError, match="remove it, and ids are looked up in the shards"):
            LogitStore.open(store.uri).find([f"record-{number}" for number in range(18)])
        assert [one.kind for one in verify_store(LogitStore.open(store.uri)).errors] == ["corrupt_ids"]
    path.write_bytes(good[:50])
    with pytest.raises(CorruptManifestError, match="damaged"):
        LogitStore.open(store.uri).find(["record-1"])


def test_verify_compares_it_with_the_shards(store: LogitStore) -> None:
    info, table = store.index_segments()[0]
    index = IdIndex.open(store.objects, info)
    assert index is not None
    entries = index.all().copy()
    entries["hash"][3] ^= np.uint64(1)
    store.objects.put(id_index.ids_name(info.name), encode_ids(info, entries))
    errors = verify_store(store).errors
    assert [one.kind for one in errors] == ["wrong_ids"]
    assert any(unit_id in errors[0].message for unit_id in table.column("unit_id").to_pylist())


@pytest.mark.parametrize("column", ["row", "place"])
def test_one_that_names_what_is_not_there_is_not_taken_up(store: LogitStore, column: str) -> None:
    """Its checksums hold: another program may have written it."""
    info, _ = store.index_segments()[0]
    index = IdIndex.open(store.objects, info)
    assert index is not None
    entries = index.all().copy()
    entries[column][3] = 1000
    store.objects.put(id_index.ids_name(info.name), encode_ids(info, entries))
    result = store.compact()
    assert "is damaged; remove it" in result.not_indexed
    assert store["record-8"].record_id == "record-8"
    check(store, 0)


def test_the_codebooks_are_asked_for_once(store: LogitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get_range = LocalBackend.get_range

    def counting(self: LocalBackend, name: str, start: int, end: int | None) -> bytes:
        asked.append(name)
        return get_range(self, name, start, end)

    monkeypatch.setattr(LocalBackend, "get_range", counting)
    segment, table = store.index_segments()[0]
    assert store.id_builder().build(segment, table) == ""
    assert asked.count(CURRENT_CODEBOOKS) == 1


@pytest.mark.parametrize("num_entries", [0, 1, 63, 64, 5000])
def test_every_id_is_found_and_no_other(num_entries: int, tmp_path: Path) -> None:
    names = [f"record-{number}" for number in range(num_entries)]
    entries = np.zeros(num_entries, ENTRY)
    entries["hash"] = id_hashes(names)
    entries["row"], entries["place"] = 1, np.arange(num_entries)
    objects = Objects(tmp_path)
    objects.put(id_index.ids_name(SEGMENT.name), encode_ids(SEGMENT, entries))
    index = IdIndex.open(objects, SEGMENT)
    assert index is not None
    assert np.sort(index.all()["place"]).tolist() == list(range(num_entries))
    rng = np.random.default_rng(0)
    for size in (1, 7, num_entries):
        chosen = rng.choice(num_entries, min(size, num_entries), replace=False)
        wanted = np.unique(id_hashes([*(names[place] for place in chosen), "nobody"]))
        assert sorted(index.find(wanted)["place"].tolist()) == sorted(chosen.tolist())
