"""Records of text files: JSON lines (plain, .gz, .zst), one JSON array, or CSV; all of them UTF-8."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from logitstore.inputs.raw_record import RawRecord, columns_of_one_name
from logitstore.manifest.strict_json import SURROGATE_ESCAPE, distinct_keys

MAX_LINE_BYTES = 64 * 2**20
ARRAY_CHUNK_BYTES = 2**20
RECORD = json.JSONDecoder(object_pairs_hook=distinct_keys)
_HALF_ESCAPED = re.compile(SURROGATE_ESCAPE.pattern.decode())
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_NOT_UTF8 = (
    "the file is UTF-16 or UTF-32, as some programs of Windows write it, and must be UTF-8; convert it, for "
    "example with: iconv -f UTF-16 -t UTF-8"
)


OTHER_FORMS = {
    b"\x1f\x8b": "compressed by gzip, and its name must end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard, and its name must end in .zst",
    b"BZh": "compressed by bzip2, which is not read: unpack it",
    b"\xfd7zXZ": "compressed by xz, which is not read: unpack it",
    b"PK\x03\x04": "a zip archive, which is not read: unpack it",
    b"PAR1": "Parquet, and its name must end in .parquet",
    b"ARROW1": "Arrow, and its name must end in .arrow",
}
"""What a file is that begins so, and is called a text."""


_EMPTY = "the file is empty, as a compressed file never is; it was cut off: restore it"


def read_gzip(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    if _is_empty(file):
        yield RawRecord(name, 0, None, _EMPTY)
        return
    with gzip.GzipFile(fileobj=file) as plain:
        yield from read_lines(io.BufferedReader(plain), name)  # type: ignore[arg-type]


def read_zstandard(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    if _is_empty(file):
        yield RawRecord(name, 0, None, _EMPTY)
        return
    # Arrow's stream, unlike zstandard's reader, takes a cut-off file for an error and not for its end.
    with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as plain:
        yield from read_lines(io.BufferedReader(plain), name)  # type: ignore[arg-type]


def _is_empty(file: BinaryIO) -> bool:
    is_empty = not file.read(1)
    file.seek(0)
    return is_empty


def read_lines(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    number, is_begun = 0, False
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            if other := next((words for start, words in OTHER_FORMS.items() if line.startswith(start)), None):
                yield RawRecord(name, 0, None, f"the file is {other}")
                return
            if line.startswith(_WIDE_MARKS) or b"\0" in line[:4]:
                yield RawRecord(name, 0, None, _NOT_UTF8)
                return
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not is_begun and line.lstrip().startswith(b"["):
            yield from _read_array(line, file, name)
            return
        is_begun = is_begun or bool(line.strip())
        if len(line) > MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                pass
            yield RawRecord(
                name, number, None, f"the line has more than {MAX_LINE_BYTES} bytes; shorten the record"
            )
            continue
        if line.strip():
            yield _parse_line(line, name, number)


def _parse_line(line: bytes, name: str, number: int) -> RawRecord:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return RawRecord(name, number, None, _not_json(error))
    try:
        value = RECORD.decode(text)
    except (ValueError, RecursionError) as error:
        return RawRecord(name, number, None, _not_json(error), text=text)
    return _checked(value, text, name, number, "the line")


def _not_json(error: Exception) -> str:
    return f"the line is not valid JSON ({error!s:.200}); write one JSON object per line"


def _checked(value: Any, text: str, name: str, number: int, what: str) -> RawRecord:
    """The record of a JSON value that stands in the input as `text`."""
    if not isinstance(value, dict):
        kind = type(value).__name__
        reason = f"{what} is a JSON {kind}, but a record must be an object with named fields"
        return RawRecord(name, number, None, reason, text=text)
    if _HALF_ESCAPED.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            reason = f"{what} has {half}, half of a character ({error.reason}); repair the text"
            return RawRecord(name, number, None, reason, text=text)
    return RawRecord(name, number, value, None)


def _read_array(start: bytes, file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """A file that is one JSON array of records; `line` counts its elements."""
    decoder, text_of = RECORD, codecs.getincrementaldecoder("utf-8")()
    number, text, at = 0, "", 0
    try:
        text = text_of.decode(start).lstrip()[1:]
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text.startswith("]", at):
                rest = text[at + 1 :] + text_of.decode(file.read(ARRAY_CHUNK_BYTES))
                if rest.strip():
                    yield RawRecord(name, number + 1, None, "text stands behind the JSON array; remove it")
                return
            try:
                if at == len(text):
                    raise ValueError("it ends before its closing bracket")
                start_of_value = at
                value, at = decoder.raw_decode(text, at)
            except ValueError as error:
                # Cut here only: behind each element it would copy the chunk for each.
                text, at = text[at:], 0
                chunk = file.read(ARRAY_CHUNK_BYTES) if len(text) <= MAX_LINE_BYTES else b""
                text += text_of.decode(chunk)
                if not chunk:
                    raise ValueError(f"{error!s:.200}") from None
                continue
            number += 1
            yield _checked(value, text[start_of_value:at], name, number, "the element")
    except (ValueError, RecursionError) as error:
        reason = f"the JSON array cannot be read beyond element {number} ({error!s:.200}); write valid JSON"
        yield RawRecord(name, number + 1, None, reason)


OTHER_SEPARATORS = (";", "\t")
"""What programs of some countries write between columns; no name of a single column holds them."""


def read_csv(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """A table of comma-separated values with a line of column names first."""
    csv.field_size_limit(MAX_LINE_BYTES)
    start = file.read(4)
    if start.startswith(_WIDE_MARKS) or b"\0" in start:
        yield RawRecord(name, 0, None, _NOT_UTF8)
        return
    file.seek(0)
    rows = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    number = 0
    try:
        head = rows.fieldnames or ()
        if len(head) == 1 and (other := next((mark for mark in OTHER_SEPARATORS if mark in head[0]), None)):
            reason = f"its columns are separated by {other!r}, and those of a CSV file must be by commas"
            yield RawRecord(name, 0, None, f"{reason}; save it anew so, or as JSONL or Parquet")
            return
        if reason := columns_of_one_name(head):
            yield RawRecord(name, 0, None, reason)
            return
        for row in rows:
            number += 1
            if None in row or None in row.values():
                reason = f"the row has another number of values than the {len(rows.fieldnames or ())} columns"
                yield RawRecord(name, number, None, f"{reason}; quote values that hold commas")
            else:
                yield RawRecord(name, number, dict(row), None)
    except (csv.Error, UnicodeDecodeError) as error:
        reason = f"the table cannot be read beyond row {number} ({error}); write UTF-8 with quoted values"
        yield RawRecord(name, number + 1, None, reason)
