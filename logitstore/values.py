"""Logits as ascending 16-bit patterns, so that a rank is a small non-negative step from the one before.

Both value kinds become a pattern that never descends along a row:
    logit_f16   0xFFFF minus the order-preserving image of the fp16 bits: descending logits ascend
    gap_f16     the bits of fp16(top - logit), round to nearest even: gaps ascend from 0

Shape legend: N label rows, K stored entries.
"""

from __future__ import annotations

import numpy as np

from logitstore.errors import InvalidLabelsError
from logitstore.streams import damaged

LOGIT_F16 = "logit_f16"
GAP_F16 = "gap_f16"

_FIRST_FINITE = {LOGIT_F16: 0x0400, GAP_F16: 0x0000}
_LAST_FINITE = {LOGIT_F16: 0xFBFF, GAP_F16: 0x7BFF}
_FIRST_NEGATIVE = 0x8000
_HALF_TO_SINGLE = np.float32(2.0**112)
"""fp16 bits shifted left by 13 are the value's fp32 bits but for the exponents' biases, 127 - 15."""


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


def to_logits(
    patterns_KN: np.ndarray, top_logits_N: np.ndarray | None, out_KN: np.ndarray | None = None
) -> np.ndarray:
    """float32 logits [K, N] of checked int32 patterns; `top_logits_N` is given for gaps."""
    if top_logits_N is not None:
        gaps_KN = np.left_shift(patterns_KN, 13).view(np.float32)
        gaps_KN *= _HALF_TO_SINGLE
        return np.subtract(top_logits_N, gaps_KN, out=out_KN)
    if int(patterns_KN.max(initial=0)) < _FIRST_NEGATIVE:
        bits_KN = (_FIRST_NEGATIVE - 1 - patterns_KN) << 13
    else:
        is_negative_KN = patterns_KN >= _FIRST_NEGATIVE
        magnitude_KN = np.where(
            is_negative_KN, patterns_KN - _FIRST_NEGATIVE, _FIRST_NEGATIVE - 1 - patterns_KN
        )
        bits_KN = (magnitude_KN << 13) | (is_negative_KN.astype(np.int32) << 31)
    return np.multiply(bits_KN.view(np.float32), _HALF_TO_SINGLE, out=out_KN)


class ValueDecoder:
    """Steps back to logits, rank after rank."""

    def __init__(self, value_kind: str, top_logits_N: np.ndarray | None) -> None:
        self._kind = value_kind
        self._top_logits_N = top_logits_N
        self._last_N: np.ndarray | None = None

    def decode(self, steps_KN: np.ndarray, out_KN: np.ndarray) -> None:
        """Fills `out_KN` with the float32 logits of the next ranks; `steps_KN` (int32) is overwritten.

        Raises:
            CorruptShardError: a step is beyond 16 bits, or a pattern is not a finite number.
        """
        if int(steps_KN.max(initial=0)) > 0xFFFF:
            raise damaged("a value step is beyond 16 bits")
        if self._last_N is None:
            self._check(int(steps_KN[0].min(initial=_LAST_FINITE[self._kind])), 0)
        else:
            steps_KN[0] += self._last_N
        for rank in range(1, len(steps_KN)):
            steps_KN[rank] += steps_KN[rank - 1]
        self._last_N = last_N = steps_KN[-1].copy()
        self._check(_FIRST_FINITE[self._kind], int(last_N.max(initial=0)))
        to_logits(steps_KN, self._top_logits_N, out_KN)

    def _check(self, lowest: int, highest: int) -> None:
        first, last = _FIRST_FINITE[self._kind], _LAST_FINITE[self._kind]
        if lowest < first or highest > last:
            raise damaged(
                f"a value pattern is {lowest if lowest < first else highest:#06x}, outside the finite "
                f"{self._kind} range {first:#06x}..{last:#06x}"
            )
