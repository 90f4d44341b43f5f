"""Files as people have them: JSON arrays, CSV, UTF-16, folders of `datasets`, names with brackets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitstore.errors import InputNotFoundError
from logitstore.inputs.listing import list_files, unread_files
from logitstore.inputs.reading import iter_records

RECORDS = [{"prompt": "Grüße, 你好", "n": 1}, {"prompt": "two", "n": 2}, {"prompt": "3]", "n": 3}]


def read(path: Path) -> list[Any]:
    return [raw.record if raw.record is not None else raw.error for raw in iter_records(str(path))]


def test_a_pipe_is_named_as_one(tmp_path: Path) -> None:
    """It is there, and "matches no file" sent people to look for it; one whose name is a file's was read, and waited."""
    os.mkfifo(tmp_path / "p.jsonl")
    for uri in ("-", "/dev/null", str(tmp_path / "p.jsonl")):
        with pytest.raises(InputNotFoundError, match=r"is a pipe or a device.*write it into a file"):
            list_files(uri)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_element_by_element(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RECORDS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert read(tmp_path / "a.json") == RECORDS
    assert [raw.line for raw in iter_records(str(tmp_path / "a.json"))] == [1, 2, 3]


def test_blank_lines_before_a_json_array_are_none_of_its_records(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('\n  \n[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n')
    found = list(iter_records(str(tmp_path / "data.json")))
    assert [(raw.line, raw.record, raw.error) for raw in found] == [
        (1, {"prompt": "a"}, None),
        (2, {"prompt": "b"}, None),
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_without_a_byte_was_cut_off(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    (raw,) = iter_records(str(tmp_path / name))
    assert (raw.line, raw.record) == (0, None)
    assert "the file is empty" in str(raw.error)


def test_an_array_longer_than_a_chunk_and_one_cut_off(tmp_path: Path) -> None:
    long = [{"prompt": f"é{i}" * 200, "n": i} for i in range(9000)]
    text = json.dumps(long, ensure_ascii=False)
    assert len(text.encode()) > 3 * 2**20
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.json") == long
    (tmp_path / "b.json").write_text(text[:-30], encoding="utf-8")
    *good, last = read(tmp_path / "b.json")
    assert good == long[:-1]
    assert "beyond element 8999" in last
    (tmp_path / "c.json").write_text('[{"a": 1}, 5, {"a": 2}]')
    assert [type(item) for item in read(tmp_path / "c.json")] == [dict, str, dict]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_utf_16_is_one_clear_error_for_the_file(tmp_path: Path, encoding: str, name: str) -> None:
    lines = "\n".join(json.dumps(record) for record in RECORDS * 20)
    (tmp_path / name).write_bytes(lines.encode(encoding))
    (error,) = iter_records(str(tmp_path / name))
    assert (error.line, error.record) == (0, None)
    assert "must be UTF-8; convert it" in (error.error or "")


def test_a_line_that_is_not_utf_8_is_refused_and_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xfc"}\n')
    good, bad = read(tmp_path / "a.jsonl")
    assert good == {"prompt": "a"}
    assert "not valid JSON" in bad


def test_csv_has_named_columns_and_tells_of_crooked_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffprompt,response\n"a, ""b""\nc",d\ne\nf,g,h\ni,\n', encoding="utf-8"
    )
    first, short, long, empty = read(tmp_path / "a.csv")
    assert first == {"prompt": 'a, "b"\nc', "response": "d"}
    assert "another number of values" in short
    assert "another number of values" in long
    assert empty == {"prompt": "i", "response": ""}


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_one_clear_error(tmp_path: Path, separator: str) -> None:
    """As programs write it where the comma is the decimal point; it was one column of a strange name."""
    (tmp_path / "a.csv").write_text(f"prompt{separator}response\na{separator}b, c\n" * 3)
    (error,) = iter_records(str(tmp_path / "a.csv"))
    assert (error.line, error.record) == (0, None)
    assert f"separated by {separator!r}, and those of a CSV file must be by commas" in (error.error or "")


def _arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _saved_split(folder: Path) -> None:
    """What `datasets.save_to_disk` leaves, with a file of its cache beside."""
    folder.mkdir(parents=True)
    _arrow_stream(folder / "data-00000-of-00001.arrow", RECORDS)
    _arrow_stream(folder / "cache-1234.arrow", RECORDS)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    (folder / "dataset_info.json").write_text('{\n "features": {}\n}')


def test_a_saved_dataset_is_its_data_files_alone(tmp_path: Path) -> None:
    _saved_split(tmp_path / "set")
    assert read(tmp_path / "set") == RECORDS


def test_a_saved_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _saved_split(tmp_path / "set" / split)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputNotFoundError, match=r"holds the splits train, test.*set/train"):
        list_files(str(tmp_path / "set"))
    assert read(tmp_path / "set" / "test") == RECORDS


@pytest.mark.parametrize("name", ["file[train].jsonl", "run [v2]/p.jsonl", "a?b.jsonl", "x*.jsonl"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(RECORDS[1]))
    (tmp_path / "xyz.jsonl").write_text(json.dumps(RECORDS[0]))
    assert read(path) == [RECORDS[1]]
    if path.parent != tmp_path:
        assert read(path.parent) == [RECORDS[1]]


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"prompt": "a"}\n')
    return folder


def test_files_of_a_folder_that_are_not_read_are_known_by_name(tmp_path: Path) -> None:
    """Half of a data set may lie in a form that is not read, beside the other half."""
    read, unread = (
        ["a.jsonl", "B.JSONL"],
        [".c.jsonl", "_d.jsonl", "e.jsonl.bz2", "f.csv.gz", "g.tsv", "h.txt"],
    )
    folder = _write(tmp_path, *read, *unread, "README.md", "LICENSE", "_SUCCESS", "dataset_infos.json")
    assert unread_files(str(folder)) == sorted(unread)
    assert sorted(name for _, name in list_files(str(folder))) == sorted(read)
    assert unread_files(str(folder / "a.jsonl")) == []
    assert unread_files(str(folder / "*.jsonl")) == []


@pytest.mark.parametrize(
    ("names", "splits", "remedy"),
    [
        (("train.jsonl", "test.jsonl"), "test, train", "test.jsonl"),
        (("train/0.jsonl", "validation/0.jsonl"), "train, validation", "train"),
        (("math_train.csv", "math_dev.csv"), "dev, train", "math_dev.csv"),
        (("data/Train-00000.jsonl", "data/val.jsonl", "data/train.jsonl"), "train, val", "data/train.jsonl"),
    ],
)
def test_a_folder_of_several_splits_asks_for_one(
    tmp_path: Path, names: tuple[str, ...], splits: str, remedy: str
) -> None:
    """Questions of an evaluation would be labeled for training in silence."""
    folder = _write(tmp_path, *names)
    with pytest.raises(InputNotFoundError) as error:
        list_files(str(folder))
    assert f"holds the splits {splits} of a dataset" in str(error.value)
    assert f"such as {folder}/{remedy}, or a glob" in str(error.value)
    assert len(list_files(f"{folder}/**/*.*")) == len(names)


def test_one_split_and_names_that_only_resemble_one_are_read(tmp_path: Path) -> None:
    names = ("train.jsonl", "trained.jsonl", "contest.jsonl", "latest/a.jsonl", "my_train.jsonl")
    assert len(list_files(str(_write(tmp_path, *names)))) == len(names)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x1f\x8b\x08\x00", "compressed by gzip, and its name must end in .gz"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstandard"),
        (b"BZh9", "compressed by bzip2"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PAR1", "Parquet, and its name must end in .parquet"),
        (b"ARROW1\0\0", "Arrow"),
    ],
)
def test_another_form_under_a_text_files_name_is_said(tmp_path: Path, start: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(start + b"\0\xff\n\n\n")
    (record,) = iter_records(str(tmp_path / "a.jsonl"))
    assert record.record is None
    assert record.error is not None
    assert said in record.error


def test_of_two_values_under_one_name_none_is_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one", "prompt": "two"}\n{"m": [{"a": 1, "a": 2}]}\n{"b": 1}\n'
    )
    (tmp_path / "b.json").write_text('[{"b": 1}, {"prompt": "one", "prompt": "two"}]')
    (tmp_path / "c.csv").write_text("prompt,response,response\na,b,c\n")
    found = list(iter_records(str(tmp_path)))
    assert [one.record for one in found] == [None, None, {"b": 1}, {"b": 1}, None, None]
    assert "repeats the key 'prompt'" in (found[0].error or "")
    assert "repeats the key 'a'" in (found[1].error or "")
    assert "repeats the key 'prompt'" in (found[4].error or "")
    assert "two of its columns are called 'response'" in (found[5].error or "")


def test_fields_that_only_other_rows_of_a_table_have_are_no_content(tmp_path: Path) -> None:
    """Arrow gives every struct of a column all fields: null arguments would be shown to the teacher."""
    calls = [{"name": "a", "arguments": {"city": "Rome"}}, {"name": "b", "arguments": {"zip": 7}}]
    rows = [{"messages": [{"role": "x", "call": call}], "note": None} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"call": {"zip": null}}\n')
    first, second, third = iter_records(str(tmp_path))
    assert first.record is not None
    assert first.record["messages"][0]["call"]["arguments"] == {"city": "Rome", "zip": None}, "ids stay"
    assert first.content == rows[0]
    assert second.content == rows[1]
    assert third.content == {"call": {"zip": None}}, "what JSON says is meant"


BAD_CELLS: dict[str, pa.Array] = {
    "no UTF-8": pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 3, 4], "<i4")), pa.py_buffer(b"a\xff\xfec")]
    ),
    "a far year": pa.array([0, 2**60, 0], pa.timestamp("us")),
}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("cells", BAD_CELLS)
def test_a_cell_that_is_no_value_costs_its_row_alone(tmp_path: Path, form: str, cells: str) -> None:
    table = pa.table({"prompt": ["a", "b", "c"], "odd": BAD_CELLS[cells]})
    _write_table(table, tmp_path / f"t.{form}")
    found = list(iter_records(str(tmp_path / f"t.{form}")))
    assert [raw.line for raw in found] == [1, 2, 3]
    assert [raw.record and raw.record["prompt"] for raw in found] == ["a", None, "c"]
    assert "its column 'odd' holds what cannot be read as a value" in str(found[1].error)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_table_with_two_columns_of_one_name_is_one_clear_error(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a", "b"]), pa.array(["c", "d"])], names=["prompt", "prompt"])
    _write_table(table, tmp_path / f"t.{form}")
    (raw,) = iter_records(str(tmp_path / f"t.{form}"))
    assert (raw.line, raw.record) == (0, None)
    assert "two of its columns are called 'prompt'" in str(raw.error)


def _write_table(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
