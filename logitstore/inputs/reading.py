"""Input records: JSONL (plain, .gz, .zst), JSON arrays, CSV, Parquet and Arrow IPC.

Reading streams: one line or a thousand rows at a time, whatever the size of the files. A record that
cannot be read becomes a `RawRecord` with an error, in its place; only an input that is not there raises.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from logitstore.common.secrets import redact_about, redact_uri
from logitstore.errors import UnsupportedInputError
from logitstore.inputs.listing import form_of, list_files, open_file
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.table_files import read_arrow, read_parquet
from logitstore.inputs.text_files import read_csv, read_gzip, read_lines, read_zstandard


def iter_records(
    uri: str, *, storage_options: Mapping[str, Any] | None = None, manifests: bool = False
) -> Iterator[RawRecord]:
    """All records in the order of file names and lines.

    The line of a store's manifest, with which an export of JSONL begins, is no record; `manifests` gives it
    too.

    Raises InputNotFoundError if nothing matches, UnsupportedInputError for a file of an unknown form;
    both before the first record.
    """
    files = list_files(uri, storage_options=storage_options)
    readers = [(path, relative, _reader_for(path)) for path, relative in files]
    records = _iter_files(readers, dict(storage_options or {}))
    return records if manifests else (raw for raw in records if not raw.is_manifest)


Reader = Callable[[BinaryIO, str], Iterator[RawRecord]]


def _iter_files(files: list[tuple[str, str, Reader]], storage_options: dict[str, Any]) -> Iterator[RawRecord]:
    for path, relative, reader in files:
        last = 0
        try:
            with open_file(path, storage_options) as file:
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


def _reader_for(path: str) -> Reader:
    form = form_of(path)
    if form is None:
        raise UnsupportedInputError(
            f"the input file {redact_uri(path)} has a name that tells no known form; names must end in "
            ".jsonl, .ndjson or .json (also with .gz or .zst), .csv, .parquet or .arrow; a text with a "
            'prompt on each line becomes JSONL with {"prompt": "..."} on each'
        )
    return {
        "jsonl": read_lines,
        ".gz": read_gzip,
        ".zst": read_zstandard,
        "parquet": read_parquet,
        "arrow": read_arrow,
        "csv": read_csv,
    }[form]
