"""Non-negative integers as one class byte and, for the larger, low bytes kept aside.

    x < T                      class x
    x < T + 256 n              class T + (x - T) // 256, one low byte
    otherwise                  class T + n + (x - T - 256 n) // 65536, two low bytes

with T + n = 224, so that the classes reach T + 256 n + 32 * 65536, beyond every vocabulary. The skew
is in the class byte, where zstd's Huffman stage finds it; low bytes are nearly uniform. Both id
positions and value deltas are coded this way, and decoding needs no loop over entries.
"""

from __future__ import annotations

import numpy as np

from logitstore.codec.loops import NUMPY_LOOPS, WIDE_CLASS, Loops, wide_from
from logitstore.codec.streams import Unpacker, damaged

NUM_STREAMS = 4
"""threshold (one byte), classes, low bytes, wide low bytes."""


def encode_integers(values: np.ndarray, threshold: int) -> list[np.ndarray]:
    """Streams of `values` (any shape, int32, in C order). `threshold` is T, 1..223."""
    return streams_of(split_integers(values.reshape(-1), threshold), threshold)


def split_integers(values: np.ndarray, threshold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes uint8, low bytes uint8, wide low bytes uint16 of int32 [n]."""
    first_wide = wide_from(threshold)
    large_at = np.flatnonzero(values >= threshold)
    large = values[large_at]
    is_wide = large >= first_wide
    classes = values.astype(np.uint8)
    classes[large_at] = np.where(
        is_wide, WIDE_CLASS + ((large - first_wide) >> 16), threshold + ((large - threshold) >> 8)
    )
    low = (large[~is_wide] - threshold).astype(np.uint8)
    return classes, low, (large[is_wide] - first_wide).astype(np.uint16)


def streams_of(parts: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: int) -> list[np.ndarray]:
    """Streams of classes, low bytes and wide low bytes (`WritingLoops.split`)."""
    classes, low, wide = parts
    return [np.array([threshold], np.uint8), classes, low, wide.astype("<u2", copy=False).view(np.uint8)]


class IntegerReader:
    """The values of four streams, taken in order and in parts small enough for the cache."""

    def __init__(self, unpacker: Unpacker, num_values: int, name: str, loops: Loops) -> None:
        self._threshold = int(unpacker.take(1)[0])
        if not 0 < self._threshold < WIDE_CLASS:
            raise damaged(f"column {name!r} has class threshold {self._threshold}, not 1..{WIDE_CLASS - 1}")
        self._expand = loops.expand
        self._classes = unpacker.take(num_values)
        num_wide = int(np.count_nonzero(self._classes >= WIDE_CLASS))
        num_large = int(np.count_nonzero(self._classes >= self._threshold))
        self._low = np.append(unpacker.take(num_large - num_wide), np.uint8(0))
        self._wide = unpacker.take(2 * num_wide).view("<u2").astype(np.uint16)  # aligned

    def take(self, num_values: int) -> np.ndarray:
        """The next values, int32."""
        classes, self._classes = self._classes[:num_values], self._classes[num_values:]
        values, num_low, num_wide = self._expand(classes, self._low, self._wide, self._threshold)
        self._low, self._wide = self._low[num_low:], self._wide[num_wide:]
        return values


def decode_integers(unpacker: Unpacker, num_values: int, name: str) -> np.ndarray:
    """All values of four streams at once, int32 [num_values]."""
    return IntegerReader(unpacker, num_values, name, NUMPY_LOOPS).take(num_values)
