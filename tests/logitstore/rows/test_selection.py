"""Selections: expressions, sets of ids and splits, in every command that takes them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from logitstore.__main__ import main
from logitstore.errors import (
    CorruptManifestError,
    StoreChangedError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.exchange.merge import merge_stores
from logitstore.manifest import reading
from logitstore.manifest.fields import MIXED, ShardEntry
from logitstore.records import Reject
from logitstore.rows import where
from logitstore.rows.conditions import id_hashes
from logitstore.rows.temperature import truncate
from logitstore.rows.where import parse_selection, select_ids, select_split
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from logitstore.viewer.pages import SequencePages
from tests.logitstore.random_labels import make_manifest, make_sequence, make_unit

RECORDS = [f"record-{number}" for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Two units of three records each; a reject with an id and one without."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit_index in range(2):
        unit_id, sequences = make_unit(unit_index)
        rejects = [Reject("in.jsonl", 1, "record-1x", "bad", "x"), Reject("in.jsonl", 2, None, "bad", "x")]
        store.commit_unit(
            unit_id, unit_index, sequences, rejects[: 2 - 2 * unit_index], seconds=0, worker="w"
        )
    return store


def chosen(store: LogitStore, where: str) -> list[int]:
    found = [sequence.record_id for sequence in parse_selection(where).sequences(store)]
    return [RECORDS.index(record_id) for record_id in found]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("record_id = record-0 or record_id = record-4", [0, 4]),
        ("record_id in (record-5, 'record-1', \"record-9\")", [1, 5]),
        ("record_id not in (record-5, record-1)", [0, 2, 3, 4]),
        ("not record_id in (record-5, record-1) AND not (unit_index = 0)", [3, 4]),
        ("not (record_id = record-0 or unit_index = 1)", [1, 2]),
        ("unit_index = 1 or record_id = record-0", [0, 3, 4, 5]),
        ("unit_index = 1 or record_id = record-0 and record_id = record-1", [3, 4, 5]),
        ("(unit_index = 1 or record_id = record-0) and record_id <= record-3", [0, 3]),
        ("not not record_id = record-2", [2]),
        ("num_tokens in (12, 13) and sample_index = 0", [0, 1, 2, 3, 4, 5]),
        ("hash >= 0 and hash < 1", [0, 1, 2, 3, 4, 5]),
        ("hash < 0", []),
    ],
)
def test_expressions(store: LogitStore, where: str, expected: list[int]) -> None:
    assert chosen(store, where) == expected


def test_units_and_blocks_that_cannot_hold_a_selected_sequence_are_not_decoded(
    store: LogitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_block, open_shard = ShardReader.read_block, LogitStore.open_shard

    def counting(self: ShardReader, index: int, *, top_k: int | None = None):
        read.append("block")
        return read_block(self, index, top_k=top_k)

    def opening(self: LogitStore, entry: ShardEntry, *, whole: bool = False) -> ShardReader:
        read.append(f"shard {entry.unit_index}")
        return open_shard(self, entry, whole=whole)

    monkeypatch.setattr(ShardReader, "read_block", counting)
    monkeypatch.setattr(LogitStore, "open_shard", opening)
    assert chosen(store, "unit_index = 1 and (record_id = record-4 or unit_id = unit-0009)") == [4]
    assert chosen(store, "record_id = record-7") == []
    assert read == ["shard 1", "block", "shard 0", "shard 1"]


def test_what_holds_of_every_combination_is_what_python_says() -> None:
    """Random expressions over what is known in part: never true where it could be false, nor the reverse."""
    rng = random.Random(3)

    def expression(depth: int) -> str:
        kind = rng.randrange(5 if depth else 2)
        if kind == 0:
            return f"unit_index = {rng.randrange(2)}"
        if kind == 1:
            return f"record_id = r{rng.randrange(2)}"
        if kind == 2:
            return f"not ({expression(depth - 1)})"
        return f"({expression(depth - 1)} {'and' if kind == 3 else 'or'} {expression(depth - 1)})"

    for _ in range(200):
        text = expression(3)
        python = text.replace(" = ", " == ").replace("r0", "'r0'").replace("r1", "'r1'")
        outcomes = {
            unit: [eval(python, {"unit_index": unit, "record_id": name}) for name in ("r0", "r1")]
            for unit in (0, 1)
        }
        for unit, by_record in outcomes.items():
            entry = ShardEntry("u", unit, "s", 1, 1, 1, 1, "", 0, 0.0, "w")
            assert parse_selection(text).takes_unit(entry) or not any(by_record), text
            rejects = [Reject("f", 1, name, "", "") for name in ("r0", "r1")]
            kept = {reject.record_id for reject in parse_selection(text).kept_rejects(rejects)}
            assert all(outcomes[one][int(str(name)[1])] for name in kept for one in (0, 1)), text


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="hash with 'nan', but it is a number of 0 to 1"):
        parse_selection("hash < nan")


def test_files_of_ids(store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b'record-1\r\n"record-4"\n\nnever labeled\n')
    assert [one.record_id for one in select_ids(ids).sequences(store)] == ["record-1", "record-4"]
    assert main(["cat", store.uri, "--ids", str(ids)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["record_id"] for line in lines] == ["record-1", "record-4"]
    assert main(["cat", store.uri, "--without-ids", str(ids), "--where", "unit_index = 1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["record_id"] for line in lines] == ["record-3", "record-5"]
    ids.write_bytes(b"\xef\xbb\xbfrecord-1\r\nrecord-4\r\n")  # as some editors of Windows write it
    assert [one.record_id for one in select_ids(ids).sequences(store)] == ["record-1", "record-4"]
    for content, says in (
        (b"\xff\n", "ids.txt:1"),
        (gzip.compress(b"record-1\n"), "in UTF-8, not compressed"),
        (b"\n", "has no record id"),
        (b'"\\u"\n', "nor a JSON string"),
    ):
        ids.write_bytes(content)
        assert main(["cat", store.uri, "--ids", str(ids)]) == 2
        assert says in capsys.readouterr().err
    assert main(["cat", store.uri, "--ids", str(tmp_path / "none")]) == 2
    assert "one record id a line" in capsys.readouterr().err


def test_of_a_list_of_ids_a_line_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id of more than 1 MiB was said to be no UTF-8, and could not be deleted by a list."""
    long = "x" * 2_000_000
    store = LogitStore.create(tmp_path / "store", make_manifest())
    sequences = [dataclasses.replace(make_sequence("x"), record_id=long), make_sequence("y")]
    store.commit_unit("u", 0, sequences, seconds=0, worker="w")
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{long}\ny\n")
    assert len(list(select_ids(ids).sequences(store))) == 2
    monkeypatch.setattr(where, "MAX_ID_BYTES", 1000)
    assert main(["cat", store.uri, "--ids", str(ids)]) == 2
    assert "ids.txt:1: a line of a list of ids has at most 1,000 bytes" in capsys.readouterr().err


def test_splits_are_parts_that_no_store_changes(
    store: LogitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = id_hashes([f"record-{number}" for number in range(20_000)])
    assert ((hashes >= 0) & (hashes < 1)).all()
    counts = np.histogram(hashes, bins=10, range=(0, 1))[0]
    assert counts.min() > 1850
    assert counts.max() < 2150
    assert id_hashes(["record-0", "record-1"]).tolist() == hashes[:2].tolist(), "of the id alone"
    assert hashes[0] == 0.32327609494375165, "stays as it is for ever"
    first, rest = (
        [one.record_id for one in select_split(text).sequences(store)] for text in ("0:0.5", "0.5:1")
    )
    assert sorted(first + rest) == RECORDS
    assert main(["cat", store.uri, "--sample", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["record_id"] for line in lines] == first
    for text in ("1:0", "0.5", "a:b", "0:2"):
        assert main(["cat", store.uri, "--split", text]) == 2
        assert "ascend" in capsys.readouterr().err


def test_merge_keeps_the_rejects_that_are_selected(store: LogitStore, tmp_path: Path) -> None:
    def kept(where: str) -> list[str | None]:
        merged = merge_stores([store], str(tmp_path / where[:12]), selection=parse_selection(where))
        return [reject.record_id for reject in merged.rejects()]

    assert kept("record_id < record-2") == ["record-1x"]
    assert kept("record_id != record-1x") == []
    assert kept("num_tokens < 999") == [], "what is not known of a reject does not count as true"
    assert len(merge_stores([store], str(tmp_path / "all")).rejects()) == 2


@pytest.mark.parametrize("command", ["merge", "export"])
def test_a_smaller_k_keeps_all_else(store: LogitStore, tmp_path: Path, command: str) -> None:
    target = str(tmp_path / "small")
    if command == "merge":
        assert main(["merge", store.uri, "--out", target, "--top-k", "3"]) == 0
    else:
        table = str(tmp_path / "small.parquet")
        assert main(["export", store.uri, "--to", "parquet", table, "--top-k", "3"]) == 0
        assert main(["import", "--from", "parquet", table, target]) == 0
    small = LogitStore.open(target)
    assert small.manifest.labels == dataclasses.replace(store.manifest.labels, top_k=3)
    assert small.manifest.teacher == store.manifest.teacher
    assert verify_store(small).problems == []
    for before, after in zip(store.iter_sequences(), small.iter_sequences(), strict=True):
        cut = truncate(before.rows, store.manifest.labels, 3)
        assert after.rows.token_ids_NK.tolist() == cut.token_ids_NK.tolist()
        np.testing.assert_allclose(after.rows.log_tail_mass_NM, cut.log_tail_mass_NM, atol=1e-3)
        assert after.token_ids_T.tolist() == before.token_ids_T.tolist()
        assert after.rows.label_rank_N.tolist() == before.rows.label_rank_N.tolist()
    assert main(["merge", small.uri, "--out", str(tmp_path / "again"), "--top-k", "64"]) == 0
    assert LogitStore.open(tmp_path / "again").manifest.labels.top_k == 3


def test_npz_of_a_smaller_k(store: LogitStore, tmp_path: Path) -> None:
    path = tmp_path / "small.npz"
    assert (
        main(["export", store.uri, "--to", "npz", str(path), "--top-k", "2", "--where", "unit_index = 1"])
        == 0
    )
    with np.load(path) as arrays:
        assert arrays["logits_NK"].shape == (33, 2)
        assert arrays["record_id"].tolist() == RECORDS[3:]


def test_a_merge_of_unlike_modes_says_so(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest()
    labels = dataclasses.replace(manifest.labels, mode="generate")
    other = LogitStore.create(tmp_path / "other", dataclasses.replace(manifest, labels=labels))
    other.commit_unit("u", 0, [make_sequence("z")], seconds=0, worker="w")
    merged = LogitStore.open(merge_stores([store, other], str(tmp_path / "merged")).uri)
    assert (merged.manifest.labels.mode, merged.manifest.labels.positions) == (MIXED, "all")
    assert merged.manifest.features == (MIXED,)
    some = parse_selection("record_id = z")
    again = merge_stores([merged, store], str(tmp_path / "again"), selection=some)
    assert again.manifest.features == (MIXED,)
    with pytest.raises(CorruptManifestError, match="must be there where mode"):
        reading.check_manifest(dataclasses.replace(merged.manifest, features=()))
    monkeypatch.setattr(reading, "KNOWN_FEATURES", frozenset())  # a reader from before
    with pytest.raises(UnsupportedFormatError, match=r"'mixed'.*newer version"):
        LogitStore.open(merged.uri)


def test_a_store_is_not_merged_into_itself(store: LogitStore) -> None:
    with pytest.raises(StoreChangedError, match="is one of the stores to merge"):
        merge_stores([store], store.uri)


def test_pages_of_selected_sequences(store: LogitStore, tmp_path: Path) -> None:
    pages = SequencePages(store, parse_selection("record_id in (record-0, record-2, record-4)"))
    assert pages.total == 3
    assert [one.record_id for one in pages.read(0, 10)] == ["record-0", "record-2", "record-4"]
    assert [one.record_id for one in pages.read(1, 1)] == ["record-2"]
    store.commit_unit("unit-0002", 2, [make_sequence("record-2", sample_index=1)], seconds=0, worker="w")
    pages.refresh()
    assert [one.sample_index for one in pages.read(3, 1)] == [1]
    page = tmp_path / "page.html"
    assert main(["view", store.uri, "--out", str(page), "--where", "record_id = record-4"]) == 0
    assert "record-4" in page.read_text()
    assert "record-3" not in page.read_text()
