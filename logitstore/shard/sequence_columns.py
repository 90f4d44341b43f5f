"""The plain columns of a block, one item per sequence, and where the block's buffers are.

Shape legend: none; lists hold one item per sequence.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from logitstore.codec.streams import damaged
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.shard.arrow_file import ArrowFile, BatchHeader
from logitstore.shard.schema import (
    MAX_BLOCK_ENTRIES,
    MAX_BLOCK_SEQUENCES,
    MAX_BLOCK_TOKENS,
    SEQUENCE_COLUMNS,
    packed_columns,
)

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class PlainColumns:
    """One item per sequence of a block; the fields are those of LabeledSequence and of FORMAT.md.

    Numbers are int32 little-endian arrays.
    """

    record_id: list[str]
    sample_index: np.ndarray
    num_tokens: np.ndarray
    prompt_length: np.ndarray
    label_start: np.ndarray
    num_rows: np.ndarray
    finish_reason: list[str]
    flags: list[str]
    """Empty, or a JSON list of strings."""

    @classmethod
    def of(cls, block: Sequence[LabeledSequence]) -> PlainColumns:
        def integers(values: Iterable[int]) -> np.ndarray:
            return np.fromiter(values, "<i4", len(block))

        return cls(
            record_id=[sequence.record_id for sequence in block],
            sample_index=integers(sequence.sample_index for sequence in block),
            num_tokens=integers(len(sequence.token_ids_T) for sequence in block),
            prompt_length=integers(sequence.prompt_length for sequence in block),
            label_start=integers(sequence.label_start for sequence in block),
            num_rows=integers(sequence.rows.num_rows for sequence in block),
            finish_reason=[sequence.finish_reason for sequence in block],
            flags=[json.dumps(list(sequence.flags)) if sequence.flags else "" for sequence in block],
        )

    def filter(self, kept: np.ndarray) -> PlainColumns:
        """The sequences that `kept`, bool, tells to keep."""
        parts = (
            values[kept] if isinstance(values, np.ndarray) else list(compress(values, kept))
            for values in self.in_order()
        )
        return PlainColumns(*parts)  # type: ignore[arg-type]

    def in_order(self) -> Iterator[list[str] | np.ndarray]:
        """The columns in the order of the file."""
        return (getattr(self, name) for name, _ in SEQUENCE_COLUMNS)

    def checksum(self) -> int:
        """CRC-32 over the columns in order: integers as they are, strings as UTF-8 behind a u32 length."""
        value = 0
        for values in self.in_order():
            if isinstance(values, np.ndarray):
                data = values.tobytes()
            else:
                encoded = [item.encode() for item in values]
                data = b"".join([part for item in encoded for part in (_LENGTH.pack(len(item)), item)])
            value = zlib.crc32(data, value)
        return value

    def to_arrays(self) -> list[pa.Array]:
        """Arrow arrays of one row, in order.

        Made from buffers: `pa.array` of a list imports pandas where it is installed, which takes seconds.
        """
        num_sequences = len(self.record_id)
        bounds = pa.py_buffer(np.array([0, num_sequences], "<i4"))
        arrays: list[pa.Array] = []
        for values, (_, dtype) in zip(self.in_order(), SEQUENCE_COLUMNS, strict=True):
            if isinstance(values, np.ndarray):
                buffers = [None, pa.py_buffer(values)]
            else:
                buffers = _binary_buffers([value.encode() for value in values])
            child = pa.Array.from_buffers(dtype.value_type, num_sequences, buffers)
            arrays.append(pa.Array.from_buffers(dtype, 1, [None, bounds], children=[child]))
        return arrays

    def check(self, index: int, labels: LabelSpec) -> None:
        """Raises CorruptShardError unless the columns of block `index` fit each other and the limits."""
        num_sequences = {len(values) for values in self.in_order()}
        rows, tokens = int(self.num_rows.sum(dtype=np.int64)), int(self.num_tokens.sum(dtype=np.int64))
        if (
            len(num_sequences) != 1
            or int(self.num_rows.min(initial=0)) < 0
            or int(self.num_tokens.min(initial=0)) < 0
            or rows * labels.top_k > MAX_BLOCK_ENTRIES
            or (rows and labels.support == "none")
            or tokens > MAX_BLOCK_TOKENS
        ):
            raise damaged(
                f"block {index} lists {sorted(num_sequences)} sequences with {rows} rows and {tokens} "
                "tokens, which the format does not allow"
            )
        for name, low in (("sample_index", 0), ("prompt_length", 0), ("label_start", 1)):
            found = int(getattr(self, name).min(initial=low))
            if found < low:
                raise damaged(f"block {index} has {name} {found}, below {low}")
        end = self.label_start.astype(np.int64) + self.num_rows
        beyond = (self.prompt_length > self.num_tokens) | (end > self.num_tokens + 1)
        if beyond.any():
            at = int(beyond.argmax())
            raise damaged(
                f"block {index} has a sequence of {self.num_tokens[at]} tokens with a prompt of "
                f"{self.prompt_length[at]} and {self.num_rows[at]} label rows from position "
                f"{self.label_start[at]}"
            )


def to_binary_array(value: bytes) -> pa.Array:
    """A packed column of one row."""
    return pa.Array.from_buffers(pa.binary(), 1, _binary_buffers([value]))


def _binary_buffers(values: Sequence[bytes]) -> list[pa.Buffer | None]:
    offsets = np.array([0, *accumulate(map(len, values))], "<i4")
    return [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]


def to_flags(text: str) -> tuple[str, ...]:
    """The flags of a sequence: "" or a JSON list of strings."""
    if not text:
        return ()
    try:
        flags = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(f"the flags {text[:80]!r} are not JSON") from error
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise damaged(f"the flags {text[:80]!r} are not a list of strings")
    return tuple(flags)


@dataclass(frozen=True)
class BlockLayout:
    """Which nodes and buffers of a record batch belong to which column of a shard's schema."""

    first_node: dict[str, int]
    first_buffer: dict[str, int]
    num_nodes: int
    num_buffers: int

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, labels: LabelSpec, has_choice: bool) -> BlockLayout:
        first_node: dict[str, int] = {}
        first_buffer: dict[str, int] = {}
        nodes = buffers = 0
        for name, dtype in SEQUENCE_COLUMNS:
            first_node[name], first_buffer[name] = nodes, buffers
            nodes += 2
            buffers += 4 if dtype.value_type == pa.int32() else 5
        first_node["sequences_checksum"], first_buffer["sequences_checksum"] = nodes, buffers
        nodes, buffers = nodes + 1, buffers + 2
        for name in packed_columns(labels, has_choice):
            first_node[name], first_buffer[name] = nodes, buffers
            nodes, buffers = nodes + 1, buffers + 3
        return cls(first_node, first_buffer, nodes, buffers)


class BlockBuffers:
    """The bytes of the first columns of one block, fetched as a single range."""

    def __init__(
        self, file: ArrowFile, header: BatchHeader, layout: BlockLayout, names: Sequence[str]
    ) -> None:
        if len(header.lengths) != layout.num_nodes or len(header.buffers) != layout.num_buffers:
            raise damaged("a record batch has not the nodes and buffers of its schema")
        self._header = header
        self._layout = layout
        last = max((layout.first_buffer[name] for name in names), default=0)
        following = [start for start in layout.first_buffer.values() if start > last]
        stop = min(following, default=layout.num_buffers)
        end = max((offset + length for offset, length in header.buffers[:stop]), default=0)
        self._body = file.read(header.body_offset, end)

    def packed(self, name: str) -> memoryview:
        """The value of a packed column."""
        first = self._layout.first_buffer[name]
        start, end = self._integers(first + 1, 2).tolist()
        offset, length = self._header.buffers[first + 2]
        if not 0 <= start <= end <= length:
            raise damaged(f"column {name!r} has offsets {start}..{end} in a buffer of {length} bytes")
        return self._body[offset + start : offset + end]

    def plain(self) -> PlainColumns:
        """The plain columns, unchecked."""
        return PlainColumns(*(self.items(name) for name, _ in SEQUENCE_COLUMNS))

    def items(self, name: str) -> Any:
        """The items of a plain column, as in PlainColumns."""
        first, node = self._layout.first_buffer[name], self._layout.first_node[name]
        start, end = self._integers(first + 1, 2).tolist()
        length = self._header.lengths[node + 1]
        if not 0 <= start <= end <= min(length, MAX_BLOCK_SEQUENCES):
            raise damaged(f"column {name!r} has items {start}..{end} of {length}")
        if dict(SEQUENCE_COLUMNS)[name].value_type == pa.int32():
            return self._integers(first + 3, end)[start:]
        return self._strings(name, first + 3, start, end)

    def plain_bytes(self, name: str) -> int:
        """Stored bytes of a plain column."""
        first = self._layout.first_buffer[name]
        count = 4 if dict(SEQUENCE_COLUMNS)[name].value_type == pa.int32() else 5
        return sum(length for _, length in self._header.buffers[first : first + count])

    def checksum(self) -> int:
        """The CRC-32 that the block keeps of its plain columns."""
        buffer = self._layout.first_buffer["sequences_checksum"] + 1
        return int(self._integers(buffer, 1).view("<u4")[0])

    def _integers(self, buffer: int, count: int) -> np.ndarray:
        offset, length = self._header.buffers[buffer]
        if 4 * count > length:
            raise damaged(f"a buffer of {length} bytes is too short for {count} integers")
        return np.frombuffer(self._body, "<i4", count, offset)

    def _strings(self, name: str, buffer: int, start: int, end: int) -> list[str]:
        bounds = self._integers(buffer, end + 1)[start:].tolist()
        offset, length = self._header.buffers[buffer + 1]
        if bounds[0] < 0 or bounds[-1] > length or any(a > b for a, b in pairwise(bounds)):
            raise damaged(f"column {name!r} has string offsets that fall or leave its {length} bytes")
        text = bytes(self._body[offset : offset + length])
        try:
            return [text[a:b].decode() for a, b in pairwise(bounds)]
        except UnicodeDecodeError as error:
            raise damaged(f"column {name!r} is not UTF-8") from error
