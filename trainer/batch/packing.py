"""Where each sequence of a batch goes: a row of its own, or packed with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def first_fit(lengths: Sequence[int], row_length: int) -> tuple[list[Place], tuple[int, int]]:
    """Each sequence, in turn, behind the others in the first row with room. Never splits one."""
    used: list[int] = []
    places = []
    for length in lengths:
        row = next((row for row, tokens in enumerate(used) if tokens + length <= row_length), len(used))
        if row == len(used):
            used.append(0)
        places.append(Place(row, used[row], length))
        used[row] += length
    return places, (len(used), row_length)
