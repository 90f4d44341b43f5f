"""Codes of token ids: positions under a row's codebook, and positions relative to a tied entry's.

Among entries of equal logit the order means nothing. logit_f16 shards therefore keep such entries in
ascending order of position and code each as its distance from the one before, less one; that saves 5
to 8 % of the ids of a bf16 teacher. In gap_f16 shards equal gaps may be unequal logits: no ties there.

Shape legend: N label rows, K stored entries, G ranks of a group.
"""

from __future__ import annotations

import numpy as np

from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.loops import Loops
from logitstore.codec.streams import damaged


def spread(values: np.ndarray, real_GN: np.ndarray | None, shape_GN: tuple[int, ...]) -> np.ndarray:
    """int32 [G, N]: the values in their places, 0 where not real."""
    if real_GN is None:
        return values.reshape(shape_GN)
    spread_GN = np.zeros(shape_GN, np.int32)
    spread_GN[real_GN] = values
    return spread_GN


class IdDecoder:
    """Decodes the ids of a block, rank group after rank group."""

    def __init__(self, codebooks: CodebookSet, choice_N: np.ndarray, loops: Loops, *, has_ties: bool) -> None:
        self._books = codebooks
        self._look_up = loops.look_up
        self._has_ties = has_ties
        self._last_N: np.ndarray | None = None
        if int(choice_N.max(initial=0)) >= codebooks.num_codebooks:
            raise damaged(f"a row chooses codebook {int(choice_N.max())} of {codebooks.num_codebooks}")
        self._offset_N = choice_N.astype(np.int32) * codebooks.head_length

    def decode(
        self,
        codes_GN: np.ndarray,
        steps_GN: np.ndarray,
        real_GN: np.ndarray | None,
        out_NK: np.ndarray,
        start: int,
    ) -> None:
        """Fills the columns of `out_NK` from `start` on with the int32 ids of the next ranks.

        They are meaningless where not real; `codes_GN` is overwritten.
        """
        if self._has_ties:
            self._untie(codes_GN, steps_GN, real_GN)
        books = self._books
        lowest, highest = int(codes_GN.min(initial=0)), int(codes_GN.max(initial=0))
        if lowest < 0 or highest >= books.head_length + books.vocab_size:
            raise damaged(
                f"an id has position {lowest if lowest < 0 else highest}, outside the {books.head_length} + "
                f"{books.vocab_size} positions of its codebook"
            )
        beyond = (books.num_codebooks - 1) * books.head_length
        self._look_up(codes_GN, self._offset_N, books.table, books.head_length, beyond, out_NK, start)

    def _untie(self, positions_GN: np.ndarray, steps_GN: np.ndarray, real_GN: np.ndarray | None) -> None:
        """Adds the position before to the codes of tied entries, in place."""
        is_tied_GN = steps_GN == 0
        if real_GN is not None:
            is_tied_GN &= real_GN
        last_N = self._last_N
        for rank, tied_N in enumerate(is_tied_GN):
            if last_N is not None:
                positions_GN[rank] += (last_N + 1) * tied_N
            last_N = positions_GN[rank]
        self._last_N = last_N
