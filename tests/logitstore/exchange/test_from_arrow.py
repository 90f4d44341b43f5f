"""Tables come back as whole columns, whatever types the tools gave them that they passed through."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.__main__ import main
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import units_of
from logitstore.exchange.tables import reading
from logitstore.exchange.tables.arrays import record_batch
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.from_arrow import sequences_of
from logitstore.exchange.tables.reading import read_table
from logitstore.manifest.fields import Manifest
from logitstore.records import LabeledSequence
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore
from tests.logitstore.random_labels import TEMPERATURES, make_manifest, make_sequence
from tests.logitstore.shard.test_block_sequences import same

Change = Callable[[pa.Table], pa.Table]


def manifest() -> Manifest:
    return dataclasses.replace(make_manifest(), features=("student_prompts", "segments"))


def make_sequences() -> list[LabeledSequence]:
    """Some rows with fewer entries, unknown labels, no tail, no rows at all; prompts and segments of some."""
    sequences = [make_sequence(f"r{number}", length=4 + number) for number in range(9)]
    ragged = sequences[3].rows
    ragged.count_N[::2] = 3
    ragged.logits_NK[::2, 3:], ragged.token_ids_NK[::2, 3:] = -np.inf, 0
    sequences[1].rows.label_logprob_N[:2] = np.nan
    sequences[1].rows.label_rank_N[:2] = 0
    sequences[2].rows.log_tail_mass_NM[0] = -np.inf
    empty = sequences[5]
    sequences[5] = dataclasses.replace(
        empty, rows=empty.rows.slice(0, 0), loss_mask_N=empty.loss_mask_N[:0], flags=("truncated", "x")
    )
    sequences[6] = dataclasses.replace(
        sequences[6],
        student_prompt_ids=np.array([1, 2, 3], np.int32),
        segments_T=np.zeros(len(sequences[6].token_ids_T), np.uint8),
    )
    return sequences


def make_table() -> pa.Table:
    return pa.Table.from_batches(
        [record_batch([BlockSequences.of([one]) for one in make_sequences()], table_schema(manifest()))]
    )


def widened(table: pa.Table) -> pa.Table:
    """As polars and pandas have them: large lists and texts, 64 bits, categories."""

    def wide(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.large_list(wide(kind.value_type))
        if pa.types.is_string(kind):
            return pa.large_string()
        if pa.types.is_integer(kind):
            return pa.int64()
        return pa.float64() if pa.types.is_floating(kind) else kind

    table = table.cast(pa.schema([(field.name, wide(field.type)) for field in table.schema]))
    place = table.schema.get_field_index("finish_reason")
    return table.set_column(place, "finish_reason", table["finish_reason"].dictionary_encode())


CHANGES: dict[str, Change] = {
    "as it was": lambda table: table,
    "no metadata, other order": lambda table: table.select(
        table.schema.names[::-1]
    ).replace_schema_metadata(),
    "widened": widened,
    "a part of a larger one": lambda table: pa.concat_tables([table, table]).combine_chunks().slice(9),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_a_table_comes_back(change: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SEQUENCES_AT_ONCE", 4)
    table = CHANGES[change](make_table())
    path = tmp_path / f"table.{form.replace('stream', 'arrow')}"
    if form == "parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    found = list(read_table(path, manifest()).sequences)
    for ours, theirs in zip(found, make_sequences(), strict=True):
        if ours.record_id == "r3":  # the padding of a row is of the width of its sequence
            assert ours.rows.logits_NK.shape == (6, 8)
        if theirs.rows.num_rows:
            same(ours, theirs)
        else:
            assert ours.rows.num_rows == 0
            same(dataclasses.replace(ours, rows=theirs.rows), theirs)
        assert [one.dtype for one in (ours.token_ids_T, ours.rows.logits_NK, ours.loss_mask_N)] == [
            np.dtype(np.int32),
            np.dtype(np.float32),
            np.dtype(bool),
        ]
    assert len(list(units_of(iter(found)))) == 1


def replaced(name: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    def apply(table: pa.Table) -> pa.Table:
        values = change(table[name].to_pylist())
        return table.set_column(
            table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type)
        )

    return apply


BROKEN: dict[str, tuple[Change, str]] = {
    "a column is missing": (lambda table: table.drop_columns(["prompt_length"]), "t:11 .*no column"),
    "a text for a number": (
        lambda table: table.set_column(1, "sample_index", pa.array(["a"] * 9)),
        "sample_index: ",
    ),
    "an id beyond int32": (
        lambda table: table.set_column(2, "token_ids", pa.array([[2**40]] * 9)),
        "token_ids: ",
    ),
    "a null record": (replaced("record_id", lambda ids: [*ids[:2], None, *ids[3:]]), "t:13 .*record_id is"),
    "a null token": (replaced("token_ids", lambda ids: [[None], *ids[1:]]), "an item of token_ids is null"),
    "a null flag": (replaced("flags", lambda flags: [*flags[:8], ["x", None]]), "an item of flags is null"),
    "a null row": (
        replaced("top_ids", lambda rows: [*rows[:4], [None, *rows[4][1:]], *rows[5:]]),
        "t:15 .*row of top_ids is null",
    ),
    "a row too few": (
        replaced("logsumexp", lambda rows: [*rows[:4], rows[4][1:], *rows[5:]]),
        "t:15 .*7 rows of top_ids and 6 of logsumexp",
    ),
    "a rank too few": (
        replaced("label_rank", lambda ranks: [*ranks[:4], ranks[4][1:], *ranks[5:]]),
        "t:15 .*6 of label_rank",
    ),
    "an entry too few": (
        replaced("top_logits", lambda rows: [[rows[0][0][1:], *rows[0][1:]], *rows[1:]]),
        "not as many top_logits",
    ),
    "a temperature too few": (
        replaced("log_tail_mass", lambda rows: [[one[1:] for one in some] for some in rows]),
        "each of 3 temperatures",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_table_of_a_store_is_refused_with_its_row(broken: str) -> None:
    change, message = BROKEN[broken]
    [batch] = change(make_table()).combine_chunks().to_batches()
    with pytest.raises(UnsupportedInputError, match=re.compile(message)):
        list(sequences_of(batch, len(TEMPERATURES), "t", 11))


BROKEN_LINES: dict[str, dict[str, Any]] = {
    "a text for a number": {"sample_index": "a"},
    "a number with a fraction": {"label_start": 1.5},
    "ids beyond int32": {"token_ids": [2**40] * 12},
    "ids beyond 64 bits": {"token_ids": [2**80] * 12},
    "a null": {"prompt_length": None},
    "an object for a text": {"record_id": {"name": "a"}},
    "a text for a list": {"flags": "abc"},
    "a null in a list": {"flags": [None]},
}


@pytest.mark.parametrize("broken", BROKEN_LINES)
def test_a_line_of_json_that_is_no_sequence_is_refused(
    broken: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit-0", 0, [make_sequence("a")], seconds=0, worker="w")
    table = tmp_path / "table.jsonl"
    assert main(["export", store.uri, "--to", "jsonl", str(table)]) == 0
    head, line = table.read_text().splitlines()
    table.write_text(f"{head}\n{json.dumps(json.loads(line) | BROKEN_LINES[broken])}\n")
    capfd.readouterr()
    assert main(["import", "--from", "jsonl", str(table), str(tmp_path / "new")]) == 2
    assert "table.jsonl:2 is not a sequence of a store's table" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_tail_that_json_made_null_is_no_mass() -> None:
    table = make_table()
    values = table["log_tail_mass"].to_pylist()
    values[2][0] = [None] * 3
    table = replaced("log_tail_mass", lambda _: values)(table)
    [batch] = table.combine_chunks().to_batches()
    found = list(sequences_of(batch, len(TEMPERATURES), "t", 1))
    assert np.isneginf(found[2].rows.log_tail_mass_NM[0]).all()


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(make_table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnsupportedInputError, match=r"table\.parquet: the file cannot be read beyond row 0"):
        list(read_table(path, manifest()).sequences)
