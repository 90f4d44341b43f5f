"""What an export holds at once is bounded, whatever the size of a shard, and a shard is read once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from logitstore.exchange.merge import merge_stores
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.tables import arrays, export
from logitstore.exchange.tables.ahead import PIECES_AHEAD, THREADS, made_ahead
from logitstore.exchange.tables.arrays import record_batch
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.export import export_table
from logitstore.rows.selection import COUNTED_SHARDS
from logitstore.rows.where import parse_selection
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence


def store_of(place: Path, num_units: int, per_unit: int) -> LogitStore:
    store = LogitStore.create(place, make_manifest())
    for unit in range(num_units):
        sequences = [make_sequence(f"{unit}-{i}") for i in range(per_unit)]
        store.commit_unit(f"u{unit}", unit, sequences, seconds=0, worker="w")
    return store


def test_batches_are_bounded_by_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of few and long sequences was one batch, whose offsets could pass int32."""
    store = store_of(tmp_path / "store", 1, 20)
    a_sequence = 11 * 8 + 12
    monkeypatch.setattr(export, "BATCH_NUMBERS", 3 * a_sequence + 1)
    sizes: list[int] = []
    real = record_batch
    monkeypatch.setattr(
        export, "record_batch", lambda some, schema: sizes.append(sum(map(len, some))) or real(some, schema)
    )
    assert export_table(store, tmp_path / "t.parquet", "parquet") == 20
    assert sizes[-7:] == [3, 3, 3, 3, 3, 3, 2]
    monkeypatch.setattr(export, "BATCH_NUMBERS", 1)
    assert export_table(store, tmp_path / "one.parquet", "parquet") == 20
    assert sizes[-20:] == [1] * 20, "one that is larger alone is a batch"
    both = [pq.read_table(tmp_path / name) for name in ("t.parquet", "one.parquet")]
    assert both[0].equals(both[1])
    assert both[0].column("record_id").to_pylist() == [f"0-{i}" for i in range(20)]


def test_offsets_beyond_int32_are_refused_and_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_OFFSET", 11 * 8 - 1)
    with pytest.raises(ValueError, match="a batch of 88 numbers is beyond int32 offsets"):
        record_batch([BlockSequences.of([make_sequence("a")])], table_schema(make_manifest()))


def test_threads_wait_until_their_pieces_are_taken() -> None:
    made: list[int] = []

    def pieces(item: int) -> Iterator[int]:
        for piece in range(100):
            made.append(item)
            yield 100 * item + piece

    taken: list[int] = []
    most = 0
    with made_ahead(pieces, range(6)) as every:
        for piece in every:
            taken.append(piece)
            most = max(most, len(made) - len(taken))
            if len(taken) % 50 == 1:
                time.sleep(0.05)
    assert taken == list(range(600))
    assert most <= THREADS * (PIECES_AHEAD + 1), most


def test_threads_end_where_nobody_takes_more_or_one_fails() -> None:
    def pieces(item: int) -> Iterator[int]:
        yield item
        if item == 2:
            raise RuntimeError("damaged")
        yield from range(1000)

    others = set(threading.enumerate())  # of which some may end meanwhile
    with made_ahead(pieces, range(100)) as endless:
        assert next(endless) == 0
    assert set(threading.enumerate()) <= others
    with pytest.raises(RuntimeError, match="damaged"), made_ahead(pieces, range(100)) as every:
        list(every)
    assert set(threading.enumerate()) <= others


def test_no_thread_outlives_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is kept, as Python keeps its last one, kept the threads, and no interpreter ended then."""
    store = store_of(tmp_path / "store", 40, 2)
    monkeypatch.setattr(export, "TOGETHER_BYTES", 1)
    others = set(threading.enumerate())  # of which some may end meanwhile

    def full(what: str, done: int, total: int) -> None:
        raise OSError("no room, on purpose")

    with pytest.raises(OSError, match="on purpose") as kept:
        export_table(store, tmp_path / "t.jsonl", "jsonl", progress=full)
    assert set(threading.enumerate()) <= others, kept


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shard was opened."""
    opened: Counter[str] = Counter()
    real = LogitStore.open_shard

    def counted(self: LogitStore, entry: Any, **how: Any) -> Any:
        opened[entry.name] += 1
        return real(self, entry, **how)

    monkeypatch.setattr(LogitStore, "open_shard", counted)
    return opened


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_condition_does_not_open_every_shard_twice(tmp_path: Path, opened: Counter[str], form: str) -> None:
    store = store_of(tmp_path / "store", 40, 2)
    said: list[int] = []
    selection = parse_selection("hash < 0.5")
    path = tmp_path / f"t.{form}"
    written = export_table(store, path, form, selection=selection, announce=said.append)
    assert 20 < written < 60
    assert len(opened) == 40
    assert sum(opened.values()) <= 40 + 2 * COUNTED_SHARDS
    opened.clear()
    merge_stores([store], str(tmp_path / f"merged-{form}"), selection=selection)
    assert sum(opened.values()) <= 40 + COUNTED_SHARDS
    export_table(store, path, form, announce=said.append)
    assert said[0] / said[1] == pytest.approx(written / 80, abs=0.2)


def test_a_capture_of_selected_sequences_reads_each_shard_once(tmp_path: Path, opened: Counter[str]) -> None:
    store = store_of(tmp_path / "store", 6, 3)
    selection = parse_selection("hash < 0.5")
    said: list[int] = []
    num_rows = export_npz(store, tmp_path / "some.npz", selection=selection, announce=said.append)
    assert set(opened.values()) == {2}  # once to know the room that it needs
    assert said[0] == 2 * num_rows * (8 * (4 + 2) + 2 * 3 * 4 + 8 + 4 + 4)
    chosen = list(selection.sequences(store))
    assert 0 < len(chosen) < 18
    assert num_rows == 11 * len(chosen)
    with np.load(tmp_path / "some.npz") as arrays:
        assert arrays["record_id"].tolist() == [one.record_id for one in chosen]
        np.testing.assert_array_equal(
            arrays["logits_NK"], np.concatenate([one.rows.logits_NK for one in chosen])
        )
        assert arrays["token_ids_NK"].dtype == np.uint16
    nothing = parse_selection("record_id = nobody")
    assert export_npz(store, tmp_path / "none.npz", selection=nothing) == 0
    with np.load(tmp_path / "none.npz") as arrays:
        assert arrays["logits_NK"].shape == (0, 8)
