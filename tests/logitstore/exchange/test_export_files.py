"""Exports as several files, at any address, in threads; what they take is said and refused before."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.__main__ import main
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.mix import mix_stores
from logitstore.exchange.tables.arrays import record_batch
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.export import export_files, export_table
from logitstore.exchange.tables.json_lines import json_lines, lines_by_arrow
from logitstore.exchange.tables.reading import read_table
from logitstore.inputs.reading import iter_records
from logitstore.objects.opening import Objects
from logitstore.publishing.card import CardSettings
from logitstore.publishing.publish import publish_store
from logitstore.records import LabeledSequence
from logitstore.rows.where import parse_selection
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore
from logitstore.tools.copying import copy_store
from tests.logitstore.random_labels import make_manifest, make_sequence, make_unit
from tests.servers.s3_dialects import run_dialect
from tests.trainer.stores import make_store


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Six units of three sequences."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit_index in range(6):
        unit_id, sequences = make_unit(unit_index)
        store.commit_unit(unit_id, unit_index, sequences, seconds=0, worker="w")
    return store


def names(store: LogitStore) -> list[tuple[str, bytes]]:
    return [(one.record_id, one.rows.logits_NK.tobytes()) for one in store]


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_several_files_come_back_as_the_store(
    store: LogitStore, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = max(entry.num_bytes for entry in store.shards())
    out = tmp_path / "tables"
    assert main(["export", store.uri, "--to", form, f"{out}/", "--file-bytes", str(2 * size + 1)]) == 0
    said = capsys.readouterr().out
    assert "18 sequences to 3 files" in said
    assert "are free" in said
    assert sorted(path.name for path in out.iterdir()) == [f"part-0000{n}-of-00003.{form}" for n in range(3)]
    assert names(import_source(read_table(out), str(tmp_path / "back"), origin=Origin())) == names(store)
    assert (
        main(["export", store.uri, "--to", form, str(out), "--file-bytes", str(2 * size + 1), "--quiet"]) == 0
    )
    with pytest.raises(UnsupportedInputError, match="files of another export, such as part-00000-of-00003"):
        export_files(store, str(out), form, file_bytes=1)


def test_the_line_of_the_manifest_is_no_record_of_an_input(store: LogitStore, tmp_path: Path) -> None:
    """Each part of an export to JSONL begins with one: a job that read them rejected a record of each."""
    size = max(entry.num_bytes for entry in store.shards())
    export_files(store, str(tmp_path / "out"), "jsonl", file_bytes=2 * size + 1)
    records = list(iter_records(str(tmp_path / "out")))
    assert [raw.record["record_id"] for raw in records if raw.record] == [name for name, _ in names(store)]
    assert [raw.line for raw in records] == [2, 3, 4, 5, 6, 7] * 3
    assert [raw.is_manifest for raw in iter_records(str(tmp_path / "out"), manifests=True)].count(True) == 3
    own = tmp_path / "own.jsonl"
    own.write_text('{"logitstore_manifest": {}, "text": "a record that says more"}\n')
    assert [raw.line for raw in iter_records(str(own))] == [1]


def sequence_record(sequence: LabeledSequence) -> dict[str, Any]:
    """One row of the table, made entry by entry."""
    rows = sequence.rows
    counts = rows.count_N.tolist()
    record = {
        "record_id": sequence.record_id,
        "sample_index": sequence.sample_index,
        "token_ids": sequence.token_ids_T.tolist(),
        "prompt_length": sequence.prompt_length,
        "label_start": sequence.label_start,
        "loss_mask": sequence.loss_mask_N.tolist(),
        "finish_reason": sequence.finish_reason,
        "flags": list(sequence.flags),
        "top_ids": [ids[:count] for ids, count in zip(rows.token_ids_NK.tolist(), counts, strict=True)],
        "top_logits": [values[:count] for values, count in zip(rows.logits_NK.tolist(), counts, strict=True)],
        "logsumexp": rows.logsumexp_NM.tolist(),
        "log_tail_mass": rows.log_tail_mass_NM.tolist(),
        "label_logprob": rows.label_logprob_N.tolist(),
        "label_rank": rows.label_rank_N.tolist(),
    }
    if sequence.student_prompt_ids is not None:
        record["student_prompt_ids"] = sequence.student_prompt_ids.tolist()
    if sequence.segments_T is not None:
        record["segments"] = sequence.segments_T.tolist()
    return record


def json_numbers(value: Any) -> Any:
    """Infinities and NaN, which JSON lacks, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [json_numbers(item) for item in value]
    return {key: json_numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


def as_read(value: Any) -> Any:
    """Numbers as the float32 that a reader of labels makes of them; no id here is beyond its 24 bits."""
    if isinstance(value, (int, float)):
        return float(np.float32(value))
    if isinstance(value, list):
        return [as_read(item) for item in value]
    return {key: as_read(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.fixture(params=["orjson", "arrow"])
def lines_of(request: pytest.FixtureRequest) -> Callable[[list[BlockSequences], pa.Schema], bytes]:
    """Both ways to the lines."""
    if request.param == "orjson":
        pytest.importorskip("orjson")
        return json_lines
    return lambda blocks, schema: lines_by_arrow(record_batch(blocks, schema))


def test_lines_of_json_are_those_made_entry_by_entry(
    lines_of: Callable[[list[BlockSequences], pa.Schema], bytes],
) -> None:
    """To the sign and the last bit, with what is not finite, not there, or has letters that JSON escapes."""
    rng = np.random.default_rng(0)
    sequences = [make_sequence('a "quoted"\n\u2028 é\\'), make_sequence("b", length=5), make_sequence("c")]
    ragged, masses, third = (one.rows for one in sequences)
    ragged.count_N[::2] = 3
    bits = rng.integers(0, 2**32, masses.logits_NK.size, np.uint32)  # any float32 whatever
    masses.logits_NK[:] = bits.view(np.float32).reshape(masses.logits_NK.shape)
    masses.log_tail_mass_NM[0] = (-0.0, 0.0, -np.inf)
    masses.label_logprob_N[:2] = (np.nan, 1e-45)
    third.log_tail_mass_NM[:] = 1e30
    sequences[1] = dataclasses.replace(
        sequences[1],
        flags=("truncated", "repeated"),
        student_prompt_ids=np.array([1, 2, 3], np.int32),
        segments_T=np.array([0, 0, 1, 2, 4], np.uint8),
    )
    features = {"features": ("student_prompts", "segments")}
    lines = lines_of(
        [BlockSequences.of(sequences)], table_schema(dataclasses.replace(make_manifest(), **features))
    )
    found = [json.loads(line) for line in lines.decode().split("\n")[:-1]]
    for got, sequence in zip(found, sequences, strict=True):
        expected = json_numbers(sequence_record(sequence))
        assert list(got) == list(expected)
        assert as_read(got) == as_read(expected)
    tail = found[1]["log_tail_mass"][0]
    assert [math.copysign(1, tail[0]), tail[1], tail[2]] == [-1, 0, None]


def test_rows_of_unlike_length_keep_their_entries() -> None:
    """The columns made from whole arrays are those that were made entry by entry."""
    sequence = make_sequence("ragged")
    sequence.rows.count_N[::2] = 3
    sequence.rows.logits_NK[::2, 3:] = -np.inf
    sequence.rows.token_ids_NK[::2, 3:] = 0
    both = [make_sequence("full"), sequence]
    rows = record_batch([BlockSequences.of([one]) for one in both], table_schema(make_manifest())).to_pylist()
    for row, expected in zip(rows, map(sequence_record, both), strict=True):
        assert [len(ids) for ids in row["top_ids"]] == [len(ids) for ids in expected["top_ids"]]
        for name, value in expected.items():
            assert row[name] == value, name


def test_to_an_object_store(store: LogitStore, tmp_path: Path) -> None:
    with run_dialect("plain") as server:
        chosen = parse_selection("num_tokens > 3 and record_id != record-4")
        result = export_files(
            store,
            "s3://b/out",
            "parquet",
            selection=chosen,
            file_bytes=1,
            storage_options=server.storage_options,
        )
        assert (result.num_sequences, result.num_files) == (17, 6)
        objects = Objects("s3://b/out", server.storage_options)
        for name in objects.list():
            (tmp_path / "tables").mkdir(exist_ok=True)
            (tmp_path / "tables" / name).write_bytes(objects.get(name))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "tables").iterdir())]
    assert sum(table.num_rows for table in tables) == 17


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_a_local_file_is_never_in_memory_as_a_whole(
    store: LogitStore, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads held four files, of up to half a gigabyte of JSONL each."""
    monkeypatch.setattr(Objects, "put", lambda *_: pytest.fail("a whole file was in memory"))
    result = export_files(store, str(tmp_path / "out"), form, file_bytes=1)
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == result.num_files == 6
    assert sum(path.stat().st_size for path in files) == result.num_bytes
    whole = tmp_path / f"whole.{form}"
    assert export_table(store, whole, form) == result.num_sequences == 18
    if form == "jsonl":
        lines = [line for path in files for line in path.read_bytes().splitlines()[1:]]
        assert lines == whole.read_bytes().splitlines()[1:]
    else:
        read = pq.read_table if form == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
        assert pa.concat_tables(map(read, files)).equals(read(whole))


def test_what_a_killed_export_left_goes_with_the_next(store: LogitStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "deeper").mkdir(parents=True)
    dead, other, living = (
        out / ".tmp-1-0123456789abcdef",
        out / "deeper/.tmp-1-0123456789abcdef",
        out / ".tmp-2-0123456789abcdef",
    )
    for path in (dead, other, living):
        path.write_bytes(b"half")
    for path in (dead, other):
        os.utime(path, (0, 0))
    export_files(store, str(out), "parquet")
    assert not dead.exists()
    assert other.exists(), "of a folder that is not the export's"
    assert living.exists(), "it may be of an export that is at work"


@pytest.mark.parametrize("form", ["npz", "messages"])
def test_forms_of_one_file_refuse_a_folder(
    store: LogitStore, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", store.uri, "--to", form, f"{tmp_path}/out/"]) == 2
    assert "is one local file" in capsys.readouterr().err


def test_what_has_no_room_is_refused_before_anything_is_written(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = int(store.shards().column("num_bytes").sum())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, size // 4))
    out = tmp_path / "out"
    attempts = {
        "the export": lambda: export_files(store, str(out), "parquet"),
        "the copy": lambda: copy_store(store, Objects(out)),
        "the publication": lambda: publish_store(store, Objects(out), CardSettings()),
        "the merge": lambda: merge_stores([store], str(tmp_path / "merged")),
        "the mixture": lambda: mix_stores((store, store), str(tmp_path / "mixed")),
    }
    for what, attempt in attempts.items():
        with pytest.raises(UnsupportedInputError, match=f"{what} needs about .* are free; make room") as told:
            attempt()
        assert ("--top-k" in str(told.value)) == (what in ("the export", "the merge"))
        assert not (tmp_path / "mixed").exists()
    with pytest.raises(UnsupportedInputError, match="are free"):
        export_table(store, tmp_path / "t.parquet", "parquet")
    assert not list(tmp_path.rglob("*.parquet*"))
    assert [path for path in out.rglob("*.arrow") if out.exists()] == []
    few = parse_selection("record_id = record-1")
    assert export_table(store, tmp_path / "t.parquet", "parquet", selection=few, announce=None) == 1


def test_the_estimate_is_near_what_is_written(store: LogitStore, tmp_path: Path) -> None:
    said: list[int] = []
    result = export_files(store, str(tmp_path / "out"), "jsonl", announce=said.append)
    assert 0.8 < said[0] / result.num_bytes < 1.3


def test_the_estimate_of_texts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no label rows, by which other stores are measured."""
    store = make_store(tmp_path / "texts", [6] * 6, texts_alone=True)
    few = parse_selection("unit_index < 2")
    for selection in (None, few):
        said: list[int] = []
        out = tmp_path / f"out-{selection is None}"
        result = export_files(store, str(out), "jsonl", selection=selection, announce=said.append)
        assert 0.5 < said[0] / result.num_bytes < 2
    size = int(store.shards().column("num_bytes").sum())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, size // 2))
    with pytest.raises(UnsupportedInputError, match="the merge needs about"):
        merge_stores([store], str(tmp_path / "merged"))
    assert len(merge_stores([store], str(tmp_path / "few"), selection=few)) == len(store) // 3


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_two_exports_to_one_file_at_once_are_each_whole(tmp_path: Path, form: str) -> None:
    """They wrote into one another's unfinished file, and what was left was of neither."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(3):
        name, sequences = make_unit(unit)
        store.commit_unit(name, unit, sequences, seconds=0.0, worker="test")
    path, others = tmp_path / f"labels.{form}", list[int]()

    def export_meanwhile(*_: object) -> None:
        if not others:
            others.append(0)
            others[0] = export_table(store, path, form, selection=parse_selection("unit_index = 0"))

    assert export_table(store, path, form, progress=export_meanwhile) == 9
    assert others == [3]
    found = [one.record_id for one in read_table(path).sequences]
    assert found == [one.record_id for one in store]
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, "store"]


def test_an_export_does_not_replace_the_ids_that_select_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("u", 0, [make_sequence("a")], seconds=0.0, worker="test")
    (tmp_path / "ids.txt").write_text("a\n")
    for option in ("--ids", "--without-ids"):
        command = ["export", store.uri, str(tmp_path / "ids.txt"), "--to", "jsonl"]
        assert main([*command, option, str(tmp_path / "ids.txt")]) == 2
        assert "is a file of the input" in capsys.readouterr().err
        assert (tmp_path / "ids.txt").read_text() == "a\n"
