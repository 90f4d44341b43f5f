"""Which sequences of a shard's blocks are not deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from logitstore.codec.streams import damaged
from logitstore.shard.schema import MAX_BLOCK_SEQUENCES


@dataclass(frozen=True)
class LivingSequences:
    """The sequences of one shard that are not deleted."""

    starts: list[int]
    """Sequences before each block and in all."""
    before: list[int]
    """The same, without the deleted ones."""
    deleted: np.ndarray
    """int64, ascending: places of the deleted sequences."""

    @classmethod
    def of(cls, lengths: Sequence[int], deleted: np.ndarray) -> LivingSequences:
        """`lengths` are the sequences of each block."""
        starts = list(accumulate(lengths, initial=0))
        return cls(starts, [start - int(np.searchsorted(deleted, start)) for start in starts], deleted)

    def kept(self, index: int) -> np.ndarray | None:
        """bool, of the sequences of a block: which are not deleted; None where none is."""
        start, end = self.starts[index : index + 2]
        first, last = np.searchsorted(self.deleted, [start, end])
        if first == last:
            return None
        if end - start > MAX_BLOCK_SEQUENCES:
            raise damaged(
                f"block {index} lists {end - start} sequences, at most {MAX_BLOCK_SEQUENCES} may be"
            )
        kept = np.ones(end - start, bool)
        kept[self.deleted[first:last] - start] = False
        return kept
