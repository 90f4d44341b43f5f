"""Index segments: many commit records as one Arrow IPC stream, sorted by unit.

A segment is an uncompressed IPC stream of one schema and record batches, nothing else, so that a local
one is mapped into memory rather than read and a hostile one cannot expand. Beside it lies, where any
unit had rejects, a second stream with those. Both are immutable and named in `index.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.errors import CorruptManifestError, ObjectNotFoundError
from logitstore.index.commits import CommitRecord, check_entry, shard_name
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import Objects
from logitstore.records import Reject

BATCH_ENTRIES = 65_536
CHECKSUM_PREFIX = "blake2b-128:"

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("unit_index", pa.int64(), nullable=False),
        pa.field("unit_id", pa.utf8(), nullable=False),
        pa.field("attempt", pa.binary(8), nullable=False),
        pa.field("has_shard", pa.bool_(), nullable=False),
        pa.field("num_sequences", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("checksum", pa.binary(16), nullable=False),
        pa.field("num_rejects", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("worker", pa.utf8(), nullable=False),
        pa.field("committed_sec", pa.float64(), nullable=False),
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        pa.field("unit_index", pa.int64(), nullable=False),
        pa.field("file", pa.utf8(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("record_id", pa.utf8()),
        pa.field("reason", pa.utf8(), nullable=False),
        pa.field("kind", pa.utf8(), nullable=False),
    ]
)
_COUNTS = ("unit_index", "num_sequences", "num_rows", "num_tokens", "num_bytes", "num_rejects")
_UNIT_ID_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""It allows any length: RE2 takes 0.3 ms to compile a repetition counted to 127, anew for every segment."""
_MAX_UNIT_ID_BYTES = 128


def entries_to_table(records: Iterable[CommitRecord]) -> pa.Table:
    """Shard entries of commit records, sorted by unit, with ENTRY_SCHEMA."""
    ordered = sorted(records, key=lambda record: record.shard.unit_index)
    rows = [_entry_row(record) for record in ordered]
    return pa.Table.from_pylist(rows, schema=ENTRY_SCHEMA)


def rejects_to_table(records: Iterable[CommitRecord]) -> pa.Table:
    ordered = sorted(records, key=lambda record: record.shard.unit_index)
    rows = [
        {"unit_index": record.shard.unit_index, **dataclasses.asdict(reject)}
        for record in ordered
        for reject in record.rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)


def merge_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one schema as one, sorted by unit (rejects keep their order within a unit)."""
    table = pa.concat_tables(tables)
    order = np.argsort(table.column("unit_index").to_numpy(), kind="stable")
    return table.take(order)


def write_segment(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_ENTRIES):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def read_entries(data: pa.Buffer, *, what: str, num_entries: int | None) -> pa.Table:
    """The entries of an untrusted segment, as many as `num_entries` if known. Raises CorruptManifestError."""
    table = _read_stream(data, ENTRY_SCHEMA, what=what, num_rows=num_entries)
    for name in _COUNTS:
        if table.column(name).to_numpy().min(initial=0) < 0:
            raise CorruptManifestError(f"{what}: {name} holds a negative number, which it must not")
    unit_index = table.column("unit_index").to_numpy()
    if np.any(np.diff(unit_index) <= 0):
        raise CorruptManifestError(f"{what}: unit_index must ascend without repeats")
    plain = pc.call_function(
        "match_substring_regex", [table.column("unit_id")], pc.MatchSubstringOptions(_UNIT_ID_PATTERN)
    )
    num_bytes = pc.call_function("binary_length", [table.column("unit_id")]).to_numpy()
    if not np.all(plain.to_numpy()) or num_bytes.max(initial=0) > _MAX_UNIT_ID_BYTES:
        raise CorruptManifestError(
            f"{what}: a unit_id has more than 128 characters, or characters that no object name may have"
        )
    for name in ("seconds", "committed_sec"):
        if not np.isfinite(table.column(name).to_numpy()).all():
            raise CorruptManifestError(f"{what}: {name} holds a number that is not finite")
    return table


def read_unnamed_entries(objects: Objects, name: str, *, max_bytes: int) -> pa.Table | None:
    """The entries of a segment that no index vouches for; None if it is gone or no whole segment."""
    try:
        data = objects.get(name, max_bytes=max_bytes)
        return read_entries(pa.py_buffer(data), what=name, num_entries=None)
    except (CorruptManifestError, ObjectNotFoundError):
        return None


def read_rejects(data: pa.Buffer, *, what: str, num_rejects: int | None) -> pa.Table:
    return _read_stream(data, REJECT_SCHEMA, what=what, num_rows=num_rejects)


def table_to_entries(table: pa.Table) -> list[ShardEntry]:
    return [_row_entry(row) for row in table.to_pylist()]


def table_to_rejects(table: pa.Table) -> list[Reject]:
    return [Reject(**row) for row in table.drop_columns(["unit_index"]).to_pylist()]


def checksum(data: bytes | pa.Buffer) -> str:
    return CHECKSUM_PREFIX + hashlib.blake2b(data, digest_size=16).hexdigest()


def _entry_row(record: CommitRecord) -> dict[str, object]:
    check_entry(record.shard, record.attempt, what=f"the record of unit {record.shard.unit_id}")
    row = dataclasses.asdict(record.shard)
    row["has_shard"] = bool(row.pop("name"))
    row["attempt"] = bytes.fromhex(record.attempt)
    row["checksum"] = bytes.fromhex(record.shard.checksum.removeprefix(CHECKSUM_PREFIX)) or bytes(16)
    return row


def _row_entry(row: dict[str, Any]) -> ShardEntry:
    attempt, has_shard, digest = row.pop("attempt").hex(), row.pop("has_shard"), row.pop("checksum").hex()
    name = shard_name(row["unit_index"], row["unit_id"], attempt) if has_shard else ""
    return ShardEntry(name=name, checksum=CHECKSUM_PREFIX + digest if has_shard else "", **row)


def _read_stream(data: pa.Buffer, schema: pa.Schema, *, what: str, num_rows: int | None) -> pa.Table:
    """An IPC stream of uncompressed record batches with exactly this schema, and nothing lazy in it."""
    try:
        table = _parse_stream(data, schema)
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error, MemoryError) as error:
        raise CorruptManifestError(
            f"{what} is not an index segment ({error}); restore it from a copy of the store"
        ) from error
    if num_rows is not None and table.num_rows != num_rows:
        raise CorruptManifestError(f"{what} has {table.num_rows} rows, index.json says {num_rows}")
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise CorruptManifestError(f"{what}: column {field.name} has nulls, which it must not")
    return table


def _parse_stream(data: pa.Buffer, schema: pa.Schema) -> pa.Table:
    source = pa.BufferReader(data)
    first = pa.ipc.read_message(source)
    if first.type != "schema":
        raise ValueError(f"it starts with a {first.type} message, not a schema")
    found = pa.ipc.read_schema(first)
    if not found.equals(schema):
        raise ValueError("its columns are not those of this format")
    batches: list[pa.RecordBatch] = []
    while True:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            break
        if message.type != "record batch":
            raise ValueError(f"it holds a {message.type} message")
        if _is_compressed(message.metadata):
            raise ValueError("a record batch is compressed, which this format forbids")
        batches.append(pa.ipc.read_record_batch(message, schema))
    return pa.Table.from_batches(batches, schema=schema)


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether the flatbuffer of a record batch message has its `compression` field.

    Arrow's Message.fbs: `header` is field 2 of Message, `compression` field 3 of RecordBatch. Each table
    starts with the signed distance back to its vtable of u16 offsets by field.
    """
    raw = metadata.to_pybytes()

    def field_position(table: int, index: int) -> int | None:
        vtable = table - struct.unpack_from("<i", raw, table)[0]
        vtable_bytes = struct.unpack_from("<H", raw, vtable)[0]
        slot = 4 + 2 * index
        offset = struct.unpack_from("<H", raw, vtable + slot)[0] if slot + 2 <= vtable_bytes else 0
        return table + offset if offset else None

    header = field_position(struct.unpack_from("<I", raw, 0)[0], 2)
    if header is None:
        raise ValueError("a record batch message has no header")
    batch = header + struct.unpack_from("<I", raw, header)[0]
    return field_position(batch, 3) is not None


def is_entries_name(name: str) -> bool:
    """True for a segment that names units, which may therefore be looked for where no index names it."""
    return re.fullmatch(r"index/[0-9a-f]{16}\.arrow", name) is not None


def valid_segment_name(name: str) -> bool:
    """True for a segment of entries, and for the rejects beside it."""
    return re.fullmatch(r"index/[0-9a-f]{16}(-rejects)?\.arrow", name) is not None
