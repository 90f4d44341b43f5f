"""Where each sequence of a batch goes: a row of its own, or packed with others."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace


@dataclass(frozen=True, slots=True)
class Place:
    """Where the first `length` tokens of a sequence stand in the batch."""

    row: int
    start: int
    length: int


def one_per_row(lengths: Sequence[int], multiple: int) -> tuple[list[Place], tuple[int, int]]:
    """A row for each sequence; the width is the longest one, rounded up. Returns places and (rows, width)."""
    width = -(-max(lengths) // multiple) * multiple
    return [Place(row, 0, length) for row, length in enumerate(lengths)], (len(lengths), width)


def packed(lengths: Sequence[int], row_length: int, multiple: int) -> tuple[list[Place], tuple[int, int]]:
    """Whole sequences side by side in as few rows of at most `row_length` as best fit needs, evenly filled.

    The width is that of the fullest row, rounded up but not above `row_length`: a batch that needs two and
    a bit rows becomes three rows of equal length instead of two full ones and one that is nearly empty.
    Returns places and (rows, width).
    """
    return laid_out(lengths, packed_rows(lengths, row_length), row_length, multiple)


def packed_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which sequences share a row: as few rows as best fit needs, evenly filled where that fits too."""
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rows = _best_fit(lengths, longest_first, row_length)
    even = _evenly(lengths, longest_first, len(rows))
    return even if max(_used(lengths, even)) <= row_length else rows


def laid_out(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], row_length: int, multiple: int
) -> tuple[list[Place], tuple[int, int]]:
    """The sequences of each row side by side; width and result as of `packed`."""
    places = [Place(0, 0, 0)] * len(lengths)
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            places[index] = Place(row, start, lengths[index])
            start += lengths[index]
    width = min(-(-max(_used(lengths, rows)) // multiple) * multiple, row_length)
    return places, (len(rows), width)


def _best_fit(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[list[int]]:
    """Each sequence in the row where it leaves the least room."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """(tokens left, row), ascending."""
    for index in order:
        at = bisect_left(room, (lengths[index], 0))
        left, row = room.pop(at) if at < len(room) else (row_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (left - lengths[index], row))
    return rows


def _evenly(lengths: Sequence[int], order: Sequence[int], num_rows: int) -> list[list[int]]:
    """Each sequence in the row with the fewest tokens so far."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    heap = [(0, row) for row in range(num_rows)]
    for index in order:
        used, row = heap[0]
        rows[row].append(index)
        heapreplace(heap, (used + lengths[index], row))
    return rows


def _used(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(lengths[index] for index in members) for members in rows]
