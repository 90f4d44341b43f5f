"""Codes of token ids: positions under a row's codebook, and positions relative to a tied entry's.

Among entries of equal logit the order means nothing. logit_f16 shards therefore keep such entries in
ascending order of position and code each as its distance from the one before, less one; that saves 5
to 8 % of the ids of a bf16 teacher. In gap_f16 shards equal gaps may be unequal logits: no ties there.

Shape legend: N label rows, K stored entries, G ranks of a group.
"""

from __future__ import annotations

import numpy as np

from logitstore.bytecodes import WIDE_CLASS, Integers
from logitstore.codebooks import CodebookSet
from logitstore.streams import damaged


def sort_ties(positions_NK: np.ndarray, patterns_NK: np.ndarray, real_NK: np.ndarray) -> np.ndarray:
    """The positions with entries of equal pattern in ascending order."""
    keys_NK = (patterns_NK.astype(np.int64) << 32) | positions_NK
    keys_NK[~real_NK] = np.iinfo(np.int64).max
    return (np.sort(keys_NK, axis=1) & 0xFFFFFFFF).astype(np.int32)


def to_tie_codes(positions_NK: np.ndarray, steps_NK: np.ndarray) -> np.ndarray:
    """Positions, or where the value does not step the distance from the position before, less one."""
    codes_NK = positions_NK.copy()
    distance_NK = np.diff(positions_NK, axis=1) - 1
    np.copyto(codes_NK[:, 1:], distance_NK, where=steps_NK[:, 1:] == 0)
    return codes_NK


def spread(values: Integers, real_GN: np.ndarray | None, shape_GN: tuple[int, ...]) -> np.ndarray:
    """int32 [G, N]: the values in their places, 0 where not real."""
    if real_GN is None:
        return values.dense().reshape(shape_GN)
    spread_GN = np.zeros(shape_GN, np.int32)
    spread_GN[real_GN] = values.dense()
    return spread_GN


class IdDecoder:
    """Decodes the ids of a block, rank group after rank group."""

    def __init__(self, codebooks: CodebookSet, choice_N: np.ndarray | None, *, has_ties: bool) -> None:
        self._books = codebooks
        self._has_ties = has_ties
        self._last_N: np.ndarray | None = None
        self._offset_N: np.ndarray | None = None
        if choice_N is not None:
            if int(choice_N.max(initial=0)) >= codebooks.num_codebooks:
                raise damaged(f"a row chooses codebook {int(choice_N.max())} of {codebooks.num_codebooks}")
            self._offset_N = choice_N.astype(np.int32) * codebooks.head_length

    def decode(
        self, codes: Integers, steps_GN: np.ndarray, real_GN: np.ndarray | None, out_GN: np.ndarray
    ) -> None:
        """Fills `out_GN` with the int32 ids [G, N] of the next ranks; meaningless where not real."""
        head_length = self._books.head_length
        positions_GN = spread(codes, real_GN, steps_GN.shape)
        if self._has_ties:
            self._untie(positions_GN, steps_GN, real_GN)
        if real_GN is None and not self._has_ties and head_length >= WIDE_CLASS:
            beyond_at = codes.large_at[codes.large >= head_length]  # a direct class lies in the head
        else:
            beyond_at = np.flatnonzero(positions_GN >= head_length)
        self._look_up(positions_GN, beyond_at, out_GN)

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
        self._last_N = positions_GN[-1].copy()  # the look-up overwrites the positions

    def _look_up(self, positions_GN: np.ndarray, beyond_at: np.ndarray, out_GN: np.ndarray) -> None:
        """Ids of positions (int32, overwritten); `beyond_at` are those outside the heads."""
        books = self._books
        lowest, highest = int(positions_GN.min(initial=0)), int(positions_GN.max(initial=0))
        if lowest < 0 or highest >= books.head_length + books.vocab_size:
            raise damaged(
                f"an id has position {lowest if lowest < 0 else highest}, outside the {books.head_length} + "
                f"{books.vocab_size} positions of its codebook"
            )
        if self._offset_N is not None:
            flat = positions_GN.reshape(-1)
            beyond = flat.take(beyond_at)
            positions_GN += self._offset_N
            flat[beyond_at] = beyond + (books.num_codebooks - 1) * books.head_length
        np.take(books.table, positions_GN, out=out_GN, mode="clip")
