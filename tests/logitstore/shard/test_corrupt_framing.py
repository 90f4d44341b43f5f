"""Every way the Arrow file around a shard's columns can lie ends in one of the format's errors."""

import io
import struct

import pyarrow as pa
import pytest

from logitstore.errors import CorruptShardError
from logitstore.shard.arrow_file import ArrowFile
from logitstore.shard.sequence_columns import BlockLayout
from tests.logitstore.shard.damaged import (
    SHARD,
    SPEC,
    read_all,
)


def test_body_compression_is_refused():
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, reader.schema, options=options) as writer:
        writer.write_batch(reader.get_batch(0))
    with pytest.raises(CorruptShardError, match="body compression"):
        read_all(sink.getvalue())


def nullable_counts(fields):
    return [field.with_nullable(True) if field.name == "counts" else field for field in fields]


@pytest.mark.parametrize(
    "change",
    [
        nullable_counts,
        lambda fields: fields[:-1],
        lambda fields: [*fields[:-2], fields[-1], fields[-2]],
        lambda fields: [*fields, pa.field("sampled_ids", pa.binary(), nullable=False)],
    ],
    ids=["nullable", "one less", "another order", "one more"],
)
def test_columns_that_are_not_those_of_the_format(change):
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    fields = change(list(reader.schema))
    held = set(reader.schema.names)
    arrays = [
        reader.get_batch(0).column(field.name) if field.name in held else pa.array([b""]) for field in fields
    ]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema(fields, metadata=reader.schema.metadata)) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=pa.schema(fields)))
    with pytest.raises(CorruptShardError, match="columns are not those of its format"):
        read_all(sink.getvalue())


def test_two_rows_in_a_batch_are_refused():
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    batch = reader.get_batch(0)
    two = pa.Table.from_batches([batch, batch]).combine_chunks().to_batches()[0]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, reader.schema) as writer:
        writer.write_batch(two)
    with pytest.raises(CorruptShardError, match="exactly one row"):
        read_all(sink.getvalue())


def with_offsets(column, buffer, offsets):
    """The shard with an offsets buffer of a column overwritten in place, as no library would write it."""
    header = ArrowFile(io.BytesIO(SHARD)).batch_header(0)
    first = BlockLayout.of(SPEC, True).first_buffer[column]
    at = header.body_offset + header.buffers[first + buffer][0]
    data = bytearray(SHARD)
    struct.pack_into(f"<{len(offsets)}i", data, at, *offsets)
    return bytes(data)


@pytest.mark.parametrize(
    ("column", "buffer", "offsets", "message"),
    [
        ("record_id", 3, [0, 10, 5, 29], "string offsets that fall"),
        ("record_id", 3, [-4, 0, 5, 29], "string offsets that fall"),
        ("record_id", 3, [0, 10, 29, 1 << 30], "string offsets that fall or leave"),
        ("num_rows", 1, [3, 0], r"items 3\.\.0 of 3"),
        ("num_rows", 1, [0, 1 << 30], r"items 0\.\.1073741824 of 3"),
        ("tails", 1, [8, 4], r"offsets 8\.\.4"),
        ("tails", 1, [0, 1 << 30], r"offsets 0\.\.1073741824"),
    ],
)
def test_offsets_that_go_backwards_or_too_far(column, buffer, offsets, message):
    with pytest.raises(CorruptShardError, match=message):
        read_all(with_offsets(column, buffer, offsets), verify_checksums=False)


@pytest.mark.parametrize("offset", [0, -(1 << 40), 1 << 40])
def test_blocks_that_overlap_or_leave_the_file(offset):
    """The footer keeps (offset i64, metadata bytes i32, padding, body bytes i64) of each record batch."""
    data = bytearray(SHARD)
    footer = len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0]
    (block,) = ArrowFile(io.BytesIO(SHARD)).blocks
    struct.pack_into("<q", data, data.index(struct.pack("<qi", *block[:2]), footer), offset)
    with pytest.raises(CorruptShardError, match="outside the file or over the block before it"):
        read_all(bytes(data))


HEADER = ArrowFile(io.BytesIO(SHARD)).batch_header(0)
((BLOCK, METADATA_BYTES, BODY_BYTES),) = ArrowFile(io.BytesIO(SHARD)).blocks
FOOTER = len(SHARD) - 10 - struct.unpack_from("<i", SHARD, len(SHARD) - 10)[0]
LAYOUT = BlockLayout.of(SPEC, True)
FAR = 0xFFFFFFF0


def at_buffer(column, buffer):
    """Where the header keeps the (offset i64, length i64) of one buffer."""
    found = HEADER.buffers[LAYOUT.first_buffer[column] + buffer]
    return SHARD.index(struct.pack("<qq", *found), BLOCK)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (len(SHARD) - 10, "<i", len(SHARD), "footer claims"),
        (len(SHARD) - 10, "<i", -1, "footer claims"),
        (0, "<I", 0, "does not start as an Arrow IPC file"),
        (12, "<i", 1 << 30, "schema cannot be read"),
        (FOOTER, "<I", FAR, "footer cannot be parsed"),
        (BLOCK, "<I", 0, "does not start with an Arrow message"),
        (BLOCK + 4, "<i", METADATA_BYTES, "does not start with an Arrow message"),
        (BLOCK + 8, "<I", FAR, "header of block 0 cannot be parsed"),
        (SHARD.index(struct.pack("<qi", BLOCK, METADATA_BYTES), FOOTER) + 16, "<q", BODY_BYTES - 8, "footer says"),
        (at_buffer("tails", 2), "<q", 1 << 40, "buffers outside its body"),
        (at_buffer("tails", 2), "<q", BODY_BYTES - 1, "buffers outside its body"),
        (at_buffer("num_rows", 3) + 8, "<q", 4, "too short for 3 integers"),
        (SHARD.index(struct.pack("<I", LAYOUT.num_buffers), BLOCK), "<I", 7, "nodes and buffers of its schema"),
        (HEADER.body_offset + HEADER.buffers[LAYOUT.first_buffer["record_id"] + 4][0], "<B", 255, "not UTF-8"),
    ],
)  # fmt: skip
def test_framing_that_lies(at, form, value, message):
    data = bytearray(SHARD)
    struct.pack_into(form, data, at, value)
    with pytest.raises(CorruptShardError, match=message):
        read_all(bytes(data), verify_checksums=False)


def test_dictionaries_are_refused():
    sink = io.BytesIO()
    table = pa.table({"a": pa.array(["x", "x"]).dictionary_encode()})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CorruptShardError, match="dictionaries"):
        read_all(sink.getvalue())
