"""Logits as ascending 16-bit patterns, so that a rank is a small non-negative step from the one before.

Both value kinds become a pattern that never descends along a row:
    logit_f16   0xFFFF minus the order-preserving image of the fp16 bits: descending logits ascend
    gap_f16     the bits of fp16(top - logit), round to nearest even: gaps ascend from 0

Shape legend: N label rows, K stored entries.
"""

from __future__ import annotations

import numpy as np

from logitstore.codec.loops import Loops, half_to_single
from logitstore.codec.streams import damaged
from logitstore.errors import InvalidLabelsError

LOGIT_F16 = "logit_f16"
GAP_F16 = "gap_f16"

_FIRST_FINITE = {LOGIT_F16: 0x0400, GAP_F16: 0x0000}
_LAST_FINITE = {LOGIT_F16: 0xFBFF, GAP_F16: 0x7BFF}
_FIRST_NEGATIVE = 0x8000
MAX_STEPS = 1 << 14
"""Steps of 16 bits that add up to less than 31 bits."""


def to_patterns(logits_NK: np.ndarray, real_NK: np.ndarray, value_kind: str) -> np.ndarray:
    """uint16 patterns [N, K] of descending float32 logits; meaningless where `real_NK` is false.

    Raises:
        InvalidLabelsError: a logit is not exact in fp16, or a gap is beyond fp16.
    """
    if value_kind == GAP_F16:
        return _gap_patterns(logits_NK, real_NK)
    with np.errstate(over="ignore"):
        halves_NK = logits_NK.astype(np.float16)
    inexact = real_NK & (halves_NK.astype(np.float32) != logits_NK)
    if inexact.any():
        row, rank = np.argwhere(inexact)[0]
        raise InvalidLabelsError(
            f"logit {logits_NK[row, rank]!r} (label row {row}, rank {rank}) and {int(inexact.sum()) - 1} "
            'more are not exact in fp16, which "logit_f16" promises; use "gap_f16" for this teacher'
        )
    halves_NK = halves_NK + np.float16(0)  # -0.0 becomes 0.0: equal logits have equal patterns
    bits = halves_NK.view(np.uint16)
    keys = np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.uint16)
    return 0xFFFF - keys


def _gap_patterns(logits_NK: np.ndarray, real_NK: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        gaps_NK = (logits_NK[:, :1] - logits_NK).astype(np.float16)
    too_wide = real_NK & ~np.isfinite(gaps_NK)
    if too_wide.any():
        row, rank = np.argwhere(too_wide)[0]
        raise InvalidLabelsError(
            f"label row {row} has logit {logits_NK[row, rank]} at rank {rank}, more than 65,504 below "
            "its top logit, the most a gap in fp16 can hold; store fewer entries or clip the logits"
        )
    return gaps_NK.view(np.uint16)


def to_logits(patterns_KN: np.ndarray, top_logits_N: np.ndarray | None) -> np.ndarray:
    """float32 logits [K, N] or [N] of checked int32 patterns; `top_logits_N` is given for gaps."""
    if top_logits_N is not None:
        return top_logits_N - half_to_single(patterns_KN)
    if int(patterns_KN.max(initial=0)) < _FIRST_NEGATIVE:
        return half_to_single(_FIRST_NEGATIVE - 1 - patterns_KN)
    is_negative_KN = patterns_KN >= _FIRST_NEGATIVE
    magnitudes_KN = half_to_single(
        np.where(is_negative_KN, patterns_KN - _FIRST_NEGATIVE, _FIRST_NEGATIVE - 1 - patterns_KN)
    )
    return np.where(is_negative_KN, -magnitudes_KN, magnitudes_KN)


class ValueDecoder:
    """Steps back to logits, rank after rank."""

    def __init__(self, value_kind: str, top_logits_N: np.ndarray | None, loops: Loops) -> None:
        self._kind = value_kind
        self._subtract_gaps = loops.subtract_gaps
        self._top_logits_N = top_logits_N
        self._last_N: np.ndarray | None = None

    def decode(self, steps_KN: np.ndarray, out_NK: np.ndarray, start: int) -> None:
        """Fills the columns of `out_NK` from `start` on with the float32 logits of the next ranks.

        `steps_KN` (int32, at most MAX_STEPS ranks) is overwritten.

        Raises:
            CorruptShardError: a step is beyond 16 bits, a pattern is not a finite number, or the first gap
                is not 0.
        """
        if int(steps_KN.max(initial=0)) > 0xFFFF:
            raise damaged("a value step is beyond 16 bits")
        is_first = self._last_N is None
        if self._last_N is None:
            self._check(int(steps_KN[0].min(initial=_LAST_FINITE[self._kind])), 0)
        else:
            steps_KN[0] += self._last_N
        for rank in range(1, len(steps_KN)):
            steps_KN[rank] += steps_KN[rank - 1]
        self._last_N = last_N = steps_KN[-1].copy()
        self._check(_FIRST_FINITE[self._kind], int(last_N.max(initial=0)))
        if is_first and self._kind == GAP_F16 and steps_KN[0].any():
            raise damaged("a row starts with a gap other than 0, though its first entry is its top logit")
        if self._top_logits_N is not None:
            self._subtract_gaps(steps_KN, self._top_logits_N, out_NK, start)
        else:
            out_NK[:, start : start + len(steps_KN)] = to_logits(steps_KN, None).T

    def _check(self, lowest: int, highest: int) -> None:
        first, last = _FIRST_FINITE[self._kind], _LAST_FINITE[self._kind]
        if lowest < first or highest > last:
            raise damaged(
                f"a value pattern is {lowest if lowest < first else highest:#06x}, outside the finite "
                f"{self._kind} range {first:#06x}..{last:#06x}"
            )
