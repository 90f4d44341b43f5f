"""The golden shard, read as a whole, and what is damaged in it."""

import io
import struct

import numpy as np
import pyarrow as pa
import zstandard

from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.streams import pack
from logitstore.errors import CorruptShardError, UnsupportedFormatError
from logitstore.shard.reader import ShardReader
from tests.golden.v1.make_golden import FOLDER, golden_sequences

SPEC = golden_sequences("gap_f16")[0]
SHARD = (FOLDER / "gap_f16.arrow").read_bytes()
CODEBOOKS = (FOLDER / "codebooks.bin").read_bytes()
BOOKS = CodebookSet.from_bytes(CODEBOOKS)
REFUSED = (CorruptShardError, UnsupportedFormatError)


def read_all(data, *, verify_checksums=True):
    reader = ShardReader(io.BytesIO(data), SPEC, BOOKS, verify_checksums=verify_checksums)
    return list(reader.iter_sequences())


def rewritten(change, data=SHARD, metadata=None):
    """The shard with its columns (and metadata) changed and written by a general Arrow writer."""
    reader = pa.ipc.open_file(io.BytesIO(data))
    values = {name: reader.get_batch(0).column(name)[0].as_py() for name in reader.schema.names}
    change(values)
    schema = reader.schema.with_metadata({**reader.schema.metadata, **(metadata or {})})
    arrays = [pa.array([values[name]], field.type) for name, field in zip(schema.names, schema, strict=True)]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def streams(packed, count):
    """Raw streams of a packed column."""
    sizes = struct.unpack_from(f"<{2 * count}I", packed)
    at, found = 8 * count, []
    for raw, stored in zip(sizes[::2], sizes[1::2], strict=True):
        data = packed[at : at + stored]
        at += stored
        found.append(np.frombuffer(data if raw == stored else zstandard.decompress(data), np.uint8).copy())
    return found


def with_streams(column, count, change):
    def apply(values):
        parts = streams(values[column], count)
        values[column] = pack(change(parts) or parts)

    return apply


def zeros(size):
    return np.zeros(size, np.uint8)


def set_all(array, value):
    return np.full(array.size, value, np.uint8)
