"""Every form of input, and every way a record can be unreadable."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from benchmarks.servers.s3 import S3Server
from logitstore.errors import InputNotFoundError, ObjectStoreError, UnsupportedInputError
from logitstore.inputs import text_files as inputs
from logitstore.inputs.identity import record_id
from logitstore.inputs.listing import input_fingerprint
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records
from logitstore.manifest.fields import InputInfo

RECORDS = [{"id": str(index), "text": f"täxt {index}", "nested": {"n": index}} for index in range(2500)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def write(path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    elif path.name == "file.arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        compress = {".gz": gzip.compress, ".zst": _two_frames}.get(path.suffix, bytes)
        path.write_bytes(compress(LINES))


def _two_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


FORMS = ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    found = list(iter_records(str(tmp_path / name)))
    assert [raw.record for raw in found] == RECORDS
    assert [raw.line for raw in found] == list(range(1, 2501))
    assert {(raw.file, raw.error) for raw in found} == {(name, None)}


def test_folders_and_globs_are_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.jsonl", "b/1.jsonl.gz", "b/readme.md", ".hidden.jsonl", "_SUCCESS.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        line = json.dumps({"name": name}).encode() + b"\n"
        (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
    assert [raw.file for raw in iter_records(str(tmp_path))] == ["a.jsonl", "b/1.jsonl.gz", "b/2.jsonl"]
    assert [raw.file for raw in iter_records(f"{tmp_path}/b/*.jsonl*")] == ["1.jsonl.gz", "2.jsonl"]
    assert [raw.file for raw in iter_records(f"{tmp_path}/**/2.jsonl")] == ["b/2.jsonl"]


@pytest.mark.s3
def test_s3_urls_and_globs(s3_server: S3Server, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl.zst")
    file_system = fsspec.filesystem("s3", **s3_server.storage_options)
    for name in ("a.parquet", "b.jsonl.zst"):
        file_system.put(str(tmp_path / name), s3_server.uri(f"inputs/set/{name}"))
    options = s3_server.storage_options
    for uri in ("inputs/set", "inputs/set/", "inputs/set/*"):
        found = list(iter_records(s3_server.uri(uri), storage_options=options))
        assert [raw.record for raw in found] == RECORDS * 2
        assert {raw.file for raw in found} == {"a.parquet", "b.jsonl.zst"}
    single = list(iter_records(s3_server.uri("inputs/set/a.parquet"), storage_options=options))
    assert len(single) == 2500
    with pytest.raises(InputNotFoundError):
        iter_records(s3_server.uri("inputs/none"), storage_options=options)


def test_bad_lines_stand_in_their_place(tmp_path: Path) -> None:
    bad = [b"{broken", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"[" * 5000, b"", b"  ", b"null"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n' + b"\n".join(bad) + b'\n{"a": 2}')
    found = list(iter_records(str(tmp_path / "a.jsonl")))
    assert [raw.line for raw in found] == [1, 2, 3, 4, 5, 6, 9, 10]
    assert [raw.record for raw in found if raw.record] == [{"a": 1}, {"a": 2}]
    errors = [raw.error or "" for raw in found if raw.record is None]
    assert "not valid JSON" in errors[0]
    assert "JSON list, but a record must be an object" in errors[1]
    assert all(error for error in errors)


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_LINE_BYTES", 1000)
    long = b'{"a": "' + b"x" * 5000 + b'"}'
    exact = b'{"a": "' + b"x" * 990 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(long + b"\n" + exact + long)
    found = list(iter_records(str(tmp_path / "a.jsonl")))
    assert [(raw.line, raw.record is None) for raw in found] == [(1, True), (2, False), (3, True)]
    assert "more than 1000 bytes" in (found[0].error or "")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"])
def test_a_damaged_file_is_one_error_and_the_next_file_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "z.jsonl").write_text('{"last": true}')
    found = list(iter_records(str(tmp_path)))
    assert found[-1].record == {"last": True}
    broken = [raw for raw in found if raw.error]
    assert [raw.file for raw in broken] == [name]
    assert "cannot be read beyond record" in (broken[0].error or "")
    assert [raw.record for raw in found[:-2]] == RECORDS[: len(found) - 2]


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none.jsonl"), str(tmp_path), str(tmp_path / "*.jsonl")):
        with pytest.raises(InputNotFoundError, match="matches no file"):
            iter_records(uri)
    (tmp_path / "a.xlsx").write_text("a,b")
    with pytest.raises(UnsupportedInputError, match="tells no known form"):
        iter_records(str(tmp_path / "a.xlsx"))
    with pytest.raises(UnsupportedInputError, match="nosuch"):
        iter_records("nosuch://bucket/a.jsonl")


def test_an_input_without_credentials_is_one_of_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    # An endpoint where nothing listens: the request fails before, when it is to be signed.
    options = {"endpoint_url": "http://127.0.0.1:1"}
    with pytest.raises(ObjectStoreError, match=r"s3://bucket/in\.jsonl is out of reach .*credentials"):
        input_fingerprint("s3://bucket/in.jsonl", storage_options=options)


def test_memory_stays_flat(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line * 1500, 1))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(line * 1500))
    next(iter_records(str(tmp_path)))
    tracemalloc.start()
    assert sum(1 for _ in iter_records(str(tmp_path))) == 3000
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


INFO = InputInfo("in.jsonl", "prompt_response", {"prompt": "q", "response": "meta.answer"})


def test_content_ids_depend_on_the_content_alone() -> None:
    first = record_id({"q": "one", "meta": {"answer": "two"}, "other": 1}, INFO)
    assert first == record_id({"other": 2, "meta": {"answer": "two"}, "q": "one"}, INFO)
    assert first == record_id({"q": "one", "meta.answer": "two"}, INFO)
    assert first != record_id({"q": "two", "meta": {"answer": "one"}}, INFO)
    assert first == "a00a11fd34032baad43940009a848e0d"  # ids of old stores must stay what they are
    assert record_id({"q": "\ud800"}, INFO) != record_id({"q": "?"}, INFO)


def test_given_ids() -> None:
    info = InputInfo("in.jsonl", "text", {"id": "id", "text": "text"})
    assert record_id({"id": "a"}, info) == "a"
    assert record_id({"id": 7}, info) == "7"
    for bad in (None, "", 1.5, True, [], {}):
        with pytest.raises(ValueError, match="id field 'id' holds"):
            record_id({"id": bad}, info)
    with pytest.raises(ValueError, match="holds None"):
        record_id({}, info)


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    first = input_fingerprint(str(tmp_path))
    assert input_fingerprint(str(tmp_path)) == first
    (tmp_path / "b.jsonl").write_text("{}\n")
    assert input_fingerprint(str(tmp_path)) != first
    with pytest.raises(InputNotFoundError):
        input_fingerprint(str(tmp_path / "none"))


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    """Tokenizers, Parquet and UTF-8 all refuse it, so the record is bad and the job goes on."""
    (tmp_path / "a.jsonl").write_text(
        '{"a": "\\ud83d"}\n{"a": ["\\udE00"]}\n{"\\uD83D": 1}\n{"a": "\\ud83d\\ude00"}'
    )
    *bad, good = iter_records(str(tmp_path / "a.jsonl"))
    assert good == RawRecord("a.jsonl", 4, {"a": "😀"}, None)
    for raw in bad:
        assert raw.record is None
        assert "surrogates not allowed" in str(raw.error)


def test_raw_records_are_plain_values(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}')
    assert list(iter_records(f"file://{tmp_path}/a.jsonl")) == [RawRecord("a.jsonl", 1, {"a": 1}, None)]
