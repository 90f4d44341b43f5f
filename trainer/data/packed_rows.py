"""Which sequences share a row of a packed batch, for a whole epoch: a pure function of order and lengths.

The lengths of all sequences stand in the stores, so the rows are known before anything is read. Each split
is packed by itself, `buffer_rows` rows at a time, and the line takes a row from each split in turn. So a row
is what a sequence is without packing: whoever reads, on however many processes, the line of rows is the same,
and a single number says how far it is consumed.

Shape legend: S sequences of a split in reading order, R rows of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.batch.packing import packed_rows
from trainer.data.order import EpochOrder
from trainer.data.outlines import Outline

LEAST_ROWS = 8
"""Rows of a split, about. The last part of each is no round number of rows, so with fewer rows they would be
of other lengths in other splits, and a batch is as wide as its longest."""
TARGET_FILL = 0.98
"""Share of a row that is aimed at: the rest is room in which best fit finds a place for every sequence."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How sequences are packed into rows before they are read. A batch then counts rows, not sequences, so
    its tokens are at most batch_size x row_tokens."""

    row_tokens: int
    """Tokens of a row, at most; the collator's `pack_length`. Longer sequences are cut to it."""
    max_tokens: int | None = None
    """Tokens kept of each sequence: the collator's `max_length`."""
    buffer_rows: int = 16
    """Rows that each split packs together. More find a better fit, and hold more decoded sequences."""

    def __post_init__(self) -> None:
        for name in ("row_tokens", "max_tokens", "buffer_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} of Packing must be at least 1")

    @property
    def token_limit(self) -> int:
        return min(self.row_tokens, self.max_tokens or self.row_tokens)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of the line: the places of its sequences within the part of a split that is packed at once."""

    split: int
    start: int
    """Place in the split at which that part begins."""
    stop: int
    members: tuple[int, ...]
    """Places in the split, each in [start, stop)."""


class PackedLine:
    """The rows of an epoch. `outlines` holds, per store and shard, which sequences take part."""

    def __init__(self, order: EpochOrder, outlines: Sequence[Sequence[Outline]], packing: Packing) -> None:
        self._rows = [
            _rows_of_split(split, _lengths(order, split, outlines), packing)
            for split in range(len(order.splits))
        ]
        sizes = [len(rows) for rows in self._rows]
        self.num_rows = sum(sizes)
        index_R = np.concatenate([np.arange(size) for size in sizes])
        split_R = np.repeat(np.arange(len(sizes)), sizes)
        self._line_R = np.lexsort((split_R, index_R))
        self._split_R, self._index_R = split_R.astype(np.int32), index_R.astype(np.int32)

    def rows(self, start: int, stop: int) -> Iterator[PackedRow]:
        """Rows of the line from `start` to before `stop`, in order."""
        for place in self._line_R[start:stop].tolist():
            yield self._rows[self._split_R[place]][self._index_R[place]]


def splits_worth_packing(
    outlines: Sequence[Sequence[Outline]], weights: Sequence[float], packing: Packing, num_splits: int
) -> int:
    """At most `num_splits`, and no more than leave each about LEAST_ROWS rows: the same in every epoch."""
    num_tokens = sum(
        weight * int(np.minimum(outline.num_tokens_S, packing.token_limit).sum())
        for of_store, weight in zip(outlines, weights, strict=True)
        for outline in of_store
    )
    return max(1, min(num_splits, int(num_tokens / packing.row_tokens / LEAST_ROWS)))


def _lengths(order: EpochOrder, split: int, outlines: Sequence[Sequence[Outline]]) -> np.ndarray:
    """int64 [S], tokens of each sequence of a split."""
    parts = []
    for visit in order.splits[split]:
        outline = outlines[visit.store][visit.shard]
        windows = order.windows(visit, np.bincount(outline.block_S).tolist())
        reading = np.concatenate([window.sequences for window in windows])[: visit.length]
        parts.append(outline.num_tokens_S[reading].astype(np.int64))
    return np.concatenate(parts)


def _rows_of_split(split: int, num_tokens_S: np.ndarray, packing: Packing) -> list[PackedRow]:
    """Parts of about as many tokens as `buffer_rows` rows hold, so that all rows of a split are alike."""
    length_S = np.minimum(num_tokens_S, packing.token_limit)
    ends_S = np.cumsum(length_S)
    num_rows = max(1, -(-int(ends_S[-1]) // max(1, int(TARGET_FILL * packing.row_tokens))))
    part_tokens = ends_S[-1] / num_rows * packing.buffer_rows
    part_S = np.floor((ends_S - length_S) / part_tokens).astype(np.int64)
    bounds = [0, *(np.flatnonzero(np.diff(part_S)) + 1).tolist(), len(length_S)]
    rows = []
    for start, stop in pairwise(bounds):
        for members in packed_rows(length_S[start:stop].tolist(), packing.row_tokens):
            rows.append(PackedRow(split, start, stop, tuple(start + member for member in members)))
    return rows
