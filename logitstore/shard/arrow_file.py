"""Just enough of the Arrow IPC file layout to plan byte ranges and to refuse what a shard must not hold.

A general Arrow reader fetches, inflates and trusts more than a shard needs. This one parses the footer
and the record batch headers (flatbuffers) with every offset checked, so that a prefix of the columns
is one range of the file, and a hostile file can ask for no more memory than it has bytes.

Layouts: https://arrow.apache.org/docs/format/Columnar.html and the flatbuffers internals page.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from logitstore.codec.streams import damaged
from logitstore.errors import StoreError

_MAGIC = b"ARROW1"
_MAX_FOOTER_BYTES = 1 << 28
_MAX_METADATA_BYTES = 1 << 20
_CONTINUATION = 0xFFFFFFFF
_RECORD_BATCH = 3
_TAIL_BYTES = 1 << 12
"""Read from the end at once: holds the footer of shards of up to some 100 blocks."""


@dataclass(frozen=True)
class BatchHeader:
    """Where the buffers of one record batch lie."""

    body_offset: int
    """Position of the body in the file."""
    lengths: list[int]
    """Items of each field node, depth first."""
    buffers: list[tuple[int, int]]
    """(offset in the body, length) of each buffer."""


class ArrowFile:
    """The record batches of an Arrow IPC file, by byte range."""

    def __init__(self, file: BinaryIO | pa.NativeFile) -> None:
        self._file = file
        self._one_at_a_time = threading.Lock()
        """Held from seeking to the end of a read, so that threads may decode blocks of one file."""
        zero_copy: Callable[[int], Any] | None = getattr(file, "read_buffer", None)
        self._take: Callable[[int], Any] = zero_copy or file.read
        self.num_bytes = int(file.seek(0, 2) or file.tell())
        tail = self.read(max(0, self.num_bytes - _TAIL_BYTES), min(self.num_bytes, _TAIL_BYTES))
        if self.num_bytes < 32 or bytes(tail[-6:]) != _MAGIC:
            raise damaged(
                f"the file ({self.num_bytes} bytes) does not end as an Arrow IPC file: it is truncated or of "
                "another kind"
            )
        footer_bytes = struct.unpack_from("<i", tail, len(tail) - 10)[0]
        if not 0 < footer_bytes <= min(_MAX_FOOTER_BYTES, self.num_bytes - 24):
            raise damaged(f"the Arrow footer claims {footer_bytes} bytes of a file of {self.num_bytes}")
        if footer_bytes + 10 > len(tail):
            tail = self.read(self.num_bytes - 10 - footer_bytes, footer_bytes + 10)
        self._body_end = self.num_bytes - 10 - footer_bytes
        self.blocks = self._parse_footer(tail[len(tail) - 10 - footer_bytes : len(tail) - 10])

    def read(self, offset: int, num_bytes: int) -> memoryview:
        """`num_bytes` from `offset`; raises CorruptShardError when the file is shorter."""
        with self._one_at_a_time:
            self._file.seek(offset)
            data = memoryview(self._take(num_bytes))
        if len(data) != num_bytes:
            raise damaged(f"the file ends {num_bytes - len(data)} bytes early, at {offset + len(data)}")
        return data

    def schema(self) -> pa.Schema:
        """The schema message at the head of the file."""
        end = min([_MAX_METADATA_BYTES, self._body_end, *(offset for offset, _, _ in self.blocks)])
        head = self.read(0, max(8, end))
        if bytes(head[:8]) != _MAGIC + b"\0\0":
            raise damaged("the file does not start as an Arrow IPC file")
        try:
            return pa.ipc.read_schema(pa.py_buffer(head[8:]))
        except (pa.ArrowException, OSError, ValueError, EOFError) as error:
            raise damaged(f"the Arrow schema cannot be read ({error})") from error

    def batch_header(self, index: int) -> BatchHeader:
        """The header of one record batch, all ranges checked to lie inside the file."""
        offset, metadata_bytes, body_bytes = self.blocks[index]
        data = self.read(offset, metadata_bytes)
        try:
            continuation, length = struct.unpack_from("<Ii", data)
            if continuation != _CONTINUATION or not 0 < length <= metadata_bytes - 8:
                raise damaged(f"block {index} does not start with an Arrow message")
            return _parse_batch(_Table.root(data[8 : 8 + length]), offset + metadata_bytes, body_bytes)
        except (struct.error, IndexError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise damaged(f"the header of block {index} cannot be parsed ({error})") from error

    def _parse_footer(self, footer: memoryview) -> list[tuple[int, int, int]]:
        """(offset, metadata bytes, body bytes) of each record batch."""
        try:
            table = _Table.root(footer)
            if table.vector(2, 24).size:
                raise damaged("the file has dictionaries, which a shard must not")
            blocks = table.vector(3, 24).reshape(-1, 24)
            offsets = np.ascontiguousarray(blocks[:, 0:8]).view("<i8")[:, 0].tolist()
            metadata = np.ascontiguousarray(blocks[:, 8:12]).view("<i4")[:, 0].tolist()
            bodies = np.ascontiguousarray(blocks[:, 16:24]).view("<i8")[:, 0].tolist()
        except (struct.error, IndexError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise damaged(f"the Arrow footer cannot be parsed ({error})") from error
        ranges = list(zip(offsets, metadata, bodies, strict=True))
        end = 8
        for index, (offset, metadata_bytes, body_bytes) in enumerate(ranges):
            fits = (
                offset >= end
                and 8 < metadata_bytes <= _MAX_METADATA_BYTES
                and body_bytes >= 0
                and offset + metadata_bytes + body_bytes <= self._body_end
            )
            if not fits:
                raise damaged(
                    f"block {index} claims bytes {offset} + {metadata_bytes} + {body_bytes}, outside "
                    "the file or over the block before it"
                )
            end = offset + metadata_bytes + body_bytes
        return ranges


def _parse_batch(message: _Table, body_offset: int, body_bytes: int) -> BatchHeader:
    if message.scalar(1, "<B") != _RECORD_BATCH or message.scalar(3, "<q") != body_bytes:
        raise damaged("an Arrow message is not the record batch that the footer says")
    batch = message.table(2)
    if batch.has(3):
        raise damaged("a record batch uses Arrow body compression, which a shard must not")
    nodes = batch.vector(1, 16).view("<i8").reshape(-1, 2)
    buffers = batch.vector(2, 16).view("<i8").reshape(-1, 2)
    if batch.scalar(0, "<q") != 1 or (nodes[:, 1] != 0).any():
        raise damaged("a record batch has not exactly one row, or holds nulls")
    if (nodes < 0).any() or (buffers < 0).any() or (buffers > body_bytes).any():
        raise damaged("a record batch names buffers outside its body")
    if (buffers.sum(axis=1) > body_bytes).any():
        raise damaged("a record batch names buffers outside its body")
    return BatchHeader(
        body_offset, nodes[:, 0].tolist(), [(start, length) for start, length in buffers.tolist()]
    )


class _Table:
    """A flatbuffers table: fields by number, absent ones being 0 or empty."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position
        vtable = position - struct.unpack_from("<i", data, position)[0]
        if not 0 <= vtable <= len(data) - 4:
            raise ValueError("a table lies outside its buffer")
        size = struct.unpack_from("<H", data, vtable)[0]
        self._fields = struct.unpack_from(f"<{max(0, size - 4) // 2}H", data, vtable + 4)

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        return field < len(self._fields) and self._fields[field] != 0

    def scalar(self, field: int, form: str) -> int:
        if not self.has(field):
            return 0
        return struct.unpack_from(form, self._data, self._position + self._fields[field])[0]

    def table(self, field: int) -> _Table:
        return _Table(self._data, self._follow(field))

    def vector(self, field: int, item_bytes: int) -> np.ndarray:
        """uint8 of a vector of structs."""
        if not self.has(field):
            return np.zeros(0, np.uint8)
        position = self._follow(field)
        length = struct.unpack_from("<I", self._data, position)[0] * item_bytes
        return np.frombuffer(self._data[position + 4 :], np.uint8, length)

    def _follow(self, field: int) -> int:
        if not self.has(field):
            raise ValueError(f"field {field} is missing")
        at = self._position + self._fields[field]
        return at + struct.unpack_from("<I", self._data, at)[0]
