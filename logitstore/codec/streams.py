"""Packed columns: byte streams behind a table of sizes, closed by a CRC-32.

    packed := stream_count * (raw_bytes u32, stored_bytes u32), stored bytes of each stream, crc32 u32

A stream whose two sizes are equal is stored as it is, otherwise as one zstd frame that declares its
content size. Sizes are compared with what the caller expects before anything is decompressed, so a
hostile file cannot make a reader allocate more than its own limits.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence

import numpy as np
import zstandard

from logitstore.codec.loops import Loops
from logitstore.errors import CorruptShardError

ZSTD_LEVEL = 1
"""Level 1 is smaller than 3 on these streams; 19 gains half a percent for fifty times the time."""

_MIN_SAVING = 1 / 64
"""Share that compression must save for a stream not to be stored as it is."""
_LEAST_FRAME_BYTES = 10
"""A zstd frame that declares its content size is no shorter."""
_of_thread = threading.local()
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"


def damaged(found: str) -> CorruptShardError:
    """The error for bytes that the format does not allow, with the remedy."""
    return CorruptShardError(f"{found}; the shard is damaged: run `penumbra store verify STORE`")


def pack(streams: Sequence[np.ndarray]) -> bytes:
    """Packs contiguous uint8 streams into one column value."""
    compress = _compressor().compress
    table: list[int] = []
    parts: list[memoryview | bytes] = []
    for stream in streams:
        raw = stored = stream.data
        if len(raw) > _LEAST_FRAME_BYTES:
            frame = compress(raw)
            if len(frame) < len(raw) * (1 - _MIN_SAVING):
                stored = frame
        table += [len(raw), len(stored)]
        parts.append(stored)
    body = struct.pack(f"<{len(table)}I", *table) + b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's own: making one costs more than deflating a small stream."""
    if not hasattr(_of_thread, "compressor"):
        _of_thread.compressor = zstandard.ZstdCompressor(
            level=ZSTD_LEVEL, write_checksum=False, write_content_size=True
        )
    return _of_thread.compressor


def stored_sizes(packed: memoryview, num_streams: int, name: str) -> list[tuple[int, int]]:
    """The table of sizes, (raw, stored) of each stream, checked against the length of the value."""
    header = 8 * num_streams
    if len(packed) < header + 4:
        raise damaged(
            f"column {name!r} has {len(packed)} bytes, fewer than its table of sizes and checksum "
            f"({header + 4})"
        )
    table = struct.unpack_from(f"<{2 * num_streams}I", packed)
    sizes = list(zip(table[::2], table[1::2], strict=True))
    if header + sum(stored for _, stored in sizes) + 4 != len(packed):
        raise damaged(
            f"column {name!r} has {len(packed)} bytes but its streams add up to "
            f"{header + sum(stored for _, stored in sizes) + 4}"
        )
    return sizes


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's own: making one costs more than inflating a small stream."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    return _of_thread.decompressor


class Unpacker:
    """The streams of one packed column, taken in order with their expected sizes."""

    def __init__(self, packed: memoryview, num_streams: int, name: str, *, verify_checksum: bool) -> None:
        self._packed = packed
        self._name = name
        self._sizes = iter(stored_sizes(packed, num_streams, name))
        self._offset = 8 * num_streams
        if verify_checksum:
            found, stored = zlib.crc32(packed[:-4]), struct.unpack_from("<I", packed, len(packed) - 4)[0]
            if found != stored:
                raise damaged(f"column {name!r} has CRC-32 {found:08x}, its block says {stored:08x}")

    def take(self, expected_bytes: int) -> np.ndarray:
        """The next stream as uint8, which must have exactly this size."""
        raw_bytes, stored_bytes = next(self._sizes)
        if raw_bytes != expected_bytes:
            raise damaged(
                f"a stream of column {self._name!r} declares {raw_bytes} bytes where the block's rows need "
                f"{expected_bytes}"
            )
        start, self._offset = self._offset, self._offset + stored_bytes
        if stored_bytes == raw_bytes:
            return np.frombuffer(self._packed, np.uint8, raw_bytes, start)
        return np.frombuffer(self._decompress(self._packed[start : self._offset], raw_bytes), np.uint8)

    def _decompress(self, stored: memoryview, raw_bytes: int) -> bytes:
        try:
            if bytes(stored[:4]) != _FRAME_MAGIC:
                raise zstandard.ZstdError("not a zstd frame")
            declared = zstandard.frame_content_size(stored)
            if declared != raw_bytes:
                raise zstandard.ZstdError(f"frame declares {declared} bytes")
            return _decompressor().decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
        except (zstandard.ZstdError, ValueError) as error:
            raise damaged(
                f"a stream of column {self._name!r} does not decompress to {raw_bytes} bytes ({error})"
            ) from error


def to_planes(values: np.ndarray, num_planes: int) -> list[np.ndarray]:
    """The low `num_planes` bytes of unsigned integers as separate streams, lowest first."""
    little = np.ascontiguousarray(values, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return list(np.ascontiguousarray(little[:, :num_planes].T))


def take_planes(
    unpacker: Unpacker, num_values: int, loops: Loops, out: np.ndarray | None = None
) -> np.ndarray:
    """The uint32 values below 2^24 whose bytes the next three streams are, in `out` where it is given."""
    values = np.empty(num_values, np.uint32) if out is None else out
    low, middle, high = (unpacker.take(num_values) for _ in range(3))
    loops.join(low, middle, high, values)
    return values
