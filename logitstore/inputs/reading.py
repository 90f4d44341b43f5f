"""Input records: JSONL (plain, .gz, .zst), Parquet and Arrow IPC, from a path, glob, folder or URL.

Reading streams: one line or a thousand rows at a time, whatever the size of the files. A record that
cannot be read becomes a `RawRecord` with an error, in its place; only an input that is not there raises.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.common.secrets import redact_about, redact_query, redact_uri
from logitstore.errors import (
    InputNotFoundError,
    ObjectStoreError,
    StoreError,
    UnsupportedInputError,
)
from logitstore.manifest.fields import InputInfo
from logitstore.manifest.strict_json import SURROGATE_ESCAPE
from logitstore.objects.opening import is_local_uri

MAX_LINE_BYTES = 64 * 2**20
ROWS_AT_ONCE = 1024
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of the input, or what stands in its place."""

    file: str
    """Relative to the folder or to the fixed part of the glob; the name alone for a single file."""
    line: int
    """1-based line (JSONL) or row (Parquet, Arrow); 0 where the file as a whole cannot be read."""
    record: dict[str, Any] | None
    error: str | None
    """Why there is no record: a sentence with the value found, the rule and the remedy."""


def iter_records(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> Iterator[RawRecord]:
    """All records in the order of file names and lines.

    Raises InputNotFoundError if nothing matches, UnsupportedInputError for a file of an unknown form;
    both before the first record.
    """
    files = list_files(uri, storage_options=storage_options)
    readers = [(path, relative, _reader_for(path)) for path, relative in files]
    return _iter_files(readers, dict(storage_options or {}))


def list_files(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """(path or URL, name relative to the input) of every file of the input, sorted.

    Raises InputNotFoundError if nothing matches, ObjectStoreError if the input is out of reach.
    """
    with _reached(uri):
        return _list_files(uri, storage_options)


def _list_files(uri: str, storage_options: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    file_system, root = _file_system(uri, storage_options)
    if pattern := _GLOB.search(root):
        base = root[: pattern.start()].rpartition("/")[0]
        found = sorted(str(path) for path in file_system.glob(root))
        found = [path for path in found if not file_system.isdir(path)]
    elif file_system.isfile(root):
        return [(file_system.unstrip_protocol(root), redact_query(root.rpartition("/")[2]))]
    else:
        base = root.rstrip("/")
        found = sorted(path for path in file_system.find(base) if _is_input_name(path))
    if not found:
        raise InputNotFoundError(
            f"the input {redact_uri(uri)} matches no file; give a path, a glob, a folder or a URL of JSONL "
            "(.gz, .zst), Parquet or Arrow files that exist"
        )
    return [
        (file_system.unstrip_protocol(path), redact_query(path[len(base) :].lstrip("/"))) for path in found
    ]


def input_fingerprint(uri: str, *, storage_options: Mapping[str, Any] | None = None) -> str:
    """32 hexadecimal digits over names, sizes and times or ETags of the files; nothing is read.

    Raises InputNotFoundError if nothing matches, ObjectStoreError if the input is out of reach.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path, relative in list_files(uri, storage_options=storage_options):
        file_system, plain = _file_system(path, storage_options)
        with _reached(path):
            info = file_system.info(plain)
        version = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
        hasher.update(f"{relative}\n{info.get('size')}\n{version}\n".encode())
    return hasher.hexdigest()


def record_id(record: Mapping[str, Any], info: InputInfo) -> str:
    """The record's stable id: its id field, or 32 hexadecimal digits over its raw content fields.

    Raises ValueError if an id field is configured and the record has none, or one that is not a string
    or integer.
    """
    if "id" in info.fields:
        value = lookup_field(record, info.fields["id"])
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(
                f"the id field {info.fields['id']!r} holds {value!r:.60}, but must be a non-empty string or "
                "an integer; repair the record, or leave the id field out to use a hash of the content"
            )
        return str(value)
    content = {role: lookup_field(record, name) for role, name in info.fields.items()}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def lookup_field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, which may be a dotted path into nested objects; None if it is not there."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


Reader = Callable[[BinaryIO, str], Iterator[RawRecord]]


def _iter_files(files: list[tuple[str, str, Reader]], storage_options: dict[str, Any]) -> Iterator[RawRecord]:
    for path, relative, reader in files:
        last = 0
        try:
            with _open_file(path, storage_options) as file:
                for raw in reader(file, relative):
                    last = raw.line
                    yield raw
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            # What is read stays; what is not cannot be counted, so one record stands for all of it.
            yield RawRecord(
                relative,
                last + 1 if last else 0,
                None,
                f"the file cannot be read beyond record {last} ({type(error).__name__}: "
                f"{redact_about(path, str(error)):.200}); it is damaged, cut off or out of reach: restore it "
                "and run the job again",
            )


def _file_system(uri: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    if is_local_uri(uri):
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))
    options = dict(storage_options or {})
    if uri.startswith(("s3://", "s3a://")):
        options.setdefault("use_listings_cache", False)
    try:
        return fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UnsupportedInputError(
            f"the input URL {redact_uri(uri)} cannot be opened: {redact_about(uri, str(error))}; use a path, "
            "s3:// or another scheme that fsspec knows"
        ) from error


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """Errors of a cloud's library, which have no class in common, as ours; they hold no credentials."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise ObjectStoreError(
            f"{redact_uri(uri)} is out of reach ({type(error).__name__}: "
            f"{redact_about(uri, str(error)):.300}); check the endpoint, the network and the credentials"
        ) from error


def _open_file(path: str, storage_options: dict[str, Any]) -> BinaryIO:
    file_system, plain = _file_system(path, storage_options)
    return file_system.open(plain, "rb")


def _is_input_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith((".", "_")) and _form_of(path) is not None


def _form_of(path: str) -> str | None:
    name = path.lower()
    for compression in (".gz", ".zst"):
        if name.endswith(compression):
            return compression if name.removesuffix(compression).endswith(JSONL_SUFFIXES) else None
    for form, suffixes in (
        ("jsonl", JSONL_SUFFIXES),
        ("parquet", PARQUET_SUFFIXES),
        ("arrow", ARROW_SUFFIXES),
    ):
        if name.endswith(suffixes):
            return form
    return None


def _reader_for(path: str) -> Reader:
    form = _form_of(path)
    if form is None:
        raise UnsupportedInputError(
            f"the input file {redact_uri(path)} has a name that tells no known form; names must end in "
            ".jsonl, .ndjson or .json (also with .gz or .zst), .parquet or .arrow"
        )
    return {
        "jsonl": _read_lines,
        ".gz": _read_gzip,
        ".zst": _read_zstandard,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }[form]


def _read_gzip(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    with gzip.GzipFile(fileobj=file) as plain:
        yield from _read_lines(io.BufferedReader(plain), name)  # type: ignore[arg-type]


def _read_zstandard(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    # Arrow's stream, unlike zstandard's reader, takes a cut-off file for an error and not for its end.
    with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as plain:
        yield from _read_lines(io.BufferedReader(plain), name)  # type: ignore[arg-type]


def _read_lines(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                pass
            yield RawRecord(
                name, number, None, f"the line has more than {MAX_LINE_BYTES} bytes; shorten the record"
            )
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _parse_line(line, name, number)


def _parse_line(line: bytes, name: str, number: int) -> RawRecord:
    try:
        value = json.loads(line)
        if SURROGATE_ESCAPE.search(line):
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a pair
    except (ValueError, RecursionError) as error:
        return RawRecord(
            name, number, None, f"the line is not valid JSON ({error!s:.200}); write one JSON object per line"
        )
    if not isinstance(value, dict):
        return RawRecord(
            name,
            number,
            None,
            f"the line is a JSON {type(value).__name__}, but a record must be an object with named fields",
        )
    return RawRecord(name, number, value, None)


def _read_parquet(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    parquet = pq.ParquetFile(file)
    yield from _rows(parquet.iter_batches(batch_size=ROWS_AT_ONCE), name)


def _read_arrow(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """An IPC file, or a stream as `datasets` writes it."""
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from _rows((reader.get_batch(index) for index in range(reader.num_record_batches)), name)
        return
    file.seek(0)
    yield from _rows(iter(pa.ipc.open_stream(file)), name)


def _rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[RawRecord]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield RawRecord(name, number, row, None)
