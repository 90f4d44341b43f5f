"""Non-negative integers as one class byte and, for the larger, low bytes kept aside.

    x < T                      class x
    x < T + 256 n              class T + (x - T) // 256, one low byte
    otherwise                  class T + n + (x - T - 256 n) // 65536, two low bytes

with T + n = 224, so that the classes reach T + 256 n + 32 * 65536, beyond every vocabulary. The skew
is in the class byte, where zstd's Huffman stage finds it; low bytes are nearly uniform. Both id
positions and value deltas are coded this way, and decoding needs no loop over entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from logitstore.streams import Unpacker, damaged

WIDE_CLASS = 224
"""First class with two low bytes."""
NUM_STREAMS = 4
"""threshold (one byte), classes, low bytes, wide low bytes."""


def wide_from(threshold: int) -> int:
    """The first integer with two low bytes."""
    return threshold + 256 * (WIDE_CLASS - threshold)


def to_classes(values: np.ndarray, threshold: int) -> np.ndarray:
    """uint8 classes of int32 values, any shape."""
    low = threshold + ((values - threshold) >> 8)
    wide = WIDE_CLASS + ((values - wide_from(threshold)) >> 16)
    return np.where(values < threshold, values, np.where(values < wide_from(threshold), low, wide)).astype(
        np.uint8
    )


def encode_integers(values: np.ndarray, threshold: int) -> list[np.ndarray]:
    """Streams of `values` (any shape, int32, in C order). `threshold` is T, 1..223."""
    flat = values.reshape(-1)
    first_wide = wide_from(threshold)
    low = flat[(flat >= threshold) & (flat < first_wide)] - threshold
    wide = flat[flat >= first_wide] - first_wide
    return [
        np.array([threshold], np.uint8),
        to_classes(flat, threshold),
        low.astype(np.uint8),
        wide.astype("<u2").view(np.uint8),
    ]


@dataclass(frozen=True)
class Integers:
    """Decoded integers, the larger ones apart: value i is `classes[i]` unless i is in `large_at`."""

    classes: np.ndarray
    """uint8 [n]."""
    large_at: np.ndarray
    """intp, ascending indices of the values that have low bytes."""
    large: np.ndarray
    """int32, their values."""

    def dense(self) -> np.ndarray:
        """int32 [n]."""
        values = self.classes.astype(np.int32)
        values[self.large_at] = self.large
        return values


class IntegerReader:
    """The values of four streams, taken in order and in parts small enough for the cache."""

    def __init__(self, unpacker: Unpacker, num_values: int, name: str) -> None:
        self._threshold = int(unpacker.take(1)[0])
        if not 0 < self._threshold < WIDE_CLASS:
            raise damaged(f"column {name!r} has class threshold {self._threshold}, not 1..{WIDE_CLASS - 1}")
        self._classes = unpacker.take(num_values)
        num_wide = int(np.count_nonzero(self._classes >= WIDE_CLASS))
        num_large = int(np.count_nonzero(self._classes >= self._threshold))
        self._low = unpacker.take(num_large - num_wide)
        self._wide = unpacker.take(2 * num_wide).view("<u2")
        self._next = self._next_low = self._next_wide = 0

    def take(self, num_values: int) -> Integers:
        """The next values."""
        classes = self._classes[self._next : self._next + num_values]
        self._next += num_values
        large_at = np.flatnonzero(classes >= self._threshold)
        large = classes.take(large_at).astype(np.int32)
        wide_at = np.flatnonzero(large >= WIDE_CLASS) if self._wide.size else large_at[:0]
        low = self._low[self._next_low : self._next_low + large.size - wide_at.size]
        wide = self._wide[self._next_wide : self._next_wide + wide_at.size]
        self._next_low += low.size
        self._next_wide += wide.size
        if wide.size:
            high = (large[wide_at] - WIDE_CLASS) << 16
            wide_values = high + wide_from(self._threshold) + wide
            narrow = large < WIDE_CLASS
            large[narrow] = ((large[narrow] - self._threshold) << 8) + self._threshold + low
            large[wide_at] = wide_values
        else:
            large -= self._threshold
            large <<= 8
            large += low
            large += self._threshold
        return Integers(classes, large_at, large)


def decode_integers(unpacker: Unpacker, num_values: int, name: str) -> np.ndarray:
    """All values of four streams at once, int32 [num_values]."""
    return IntegerReader(unpacker, num_values, name).take(num_values).dense()
