"""What a label row holds beside its entries: normalisers, tail masses, the actual token, counts.

    normaliser   logsumexp(l / T) - top / T >= 0, as a float of 16 mantissa bits (relative error 2^-17)
    tail         -log(tail mass) on a grid of 1/1024 nat (error of the mass 4.9e-4); 0xFFFFFF is no tail
    label        one byte: 0 unknown, 1..8 the rank (its log-probability then follows from the entries),
                 255 rank and log-probability given beside
    counts       entries per row, only where some row has fewer than top_k

Each is split into byte planes (streams.py). Everything decodes without a transcendental function, so
that implementations agree to the bit.

Shape legend: N label rows, P peaked ones, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.codec.loops import Loops
from logitstore.codec.streams import Unpacker, damaged, take_planes, to_planes
from logitstore.errors import InvalidLabelsError
from logitstore.records import LabelRows

TAIL_STEPS_PER_NAT = 1024
NO_TAIL = 0xFFFFFF
LABEL_UNKNOWN = 0
MAX_DERIVED_RANK = 8
LABEL_EXPLICIT = 255
LABEL_TOLERANCE = 0.01
"""Nats by which a log-probability read off the entries may differ from the teacher's before it is stored."""

_FLOAT24_INFINITY = 0xFF0000
_PEAKED = 0.1
"""Normalisers below this many nats are taken from the entries' masses."""


def to_float24(values: np.ndarray) -> np.ndarray:
    """uint32 below 2^24: non-negative float32 rounded to 16 mantissa bits, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits + 63 + ((bits >> 7) & 1)) >> 7


def from_float24(codes: np.ndarray) -> np.ndarray:
    """float32 of `to_float24`."""
    return (codes << np.uint32(7)).view(np.float32)


def encode_normalizers(rows: LabelRows, temperatures: Sequence[float]) -> list[np.ndarray]:
    """Three planes per temperature of logsumexp(l / T) - top / T."""
    top_MN = rows.logits_NK[:, 0].astype(np.float64) / np.asarray(temperatures, np.float64)[:, None]
    above_MN = np.maximum(rows.logsumexp_NM.T - top_MN, 0)
    for index, temperature in enumerate(temperatures):
        # Where nearly all mass is on the top entry the difference of two float32 is mostly rounding;
        # there the same number follows from the other entries and the tail.
        peaked = np.flatnonzero(above_MN[index] < _PEAKED)
        if not peaked.size:
            continue
        gaps_PK = rows.logits_NK[peaked, 1:] - rows.logits_NK[peaked, :1]
        gaps_PK[np.arange(1, rows.logits_NK.shape[1]) >= rows.count_N[peaked, None]] = -np.inf
        others_P = np.exp(gaps_PK / np.float32(temperature)).sum(axis=1, dtype=np.float64)
        tail_P = np.exp(rows.log_tail_mass_NM[peaked, index].astype(np.float64))
        above_MN[index, peaked] = np.log1p(others_P) - np.log1p(-np.minimum(tail_P, 0.5))
    return [plane for codes_N in to_float24(above_MN) for plane in to_planes(codes_N, 3)]


def decode_normalizers(unpacker: Unpacker, num_rows: int, num_temperatures: int, loops: Loops) -> np.ndarray:
    """float32 [M, N]: logsumexp(l / T) - top / T."""
    codes_MN = _take_codes(unpacker, num_rows, num_temperatures, loops)
    if codes_MN.size and int(codes_MN.max()) >= _FLOAT24_INFINITY:
        raise damaged("a normaliser is infinite or NaN")
    return from_float24(codes_MN)


def encode_tails(log_tail_mass_NM: np.ndarray) -> list[np.ndarray]:
    """Three planes per temperature of -log(tail mass)."""
    steps_MN = np.rint(log_tail_mass_NM.T.astype(np.float64) * -TAIL_STEPS_PER_NAT)
    codes_MN = np.minimum(np.maximum(steps_MN, 0), NO_TAIL).astype(np.uint32)  # infinity becomes NO_TAIL
    return [plane for codes_N in codes_MN for plane in to_planes(codes_N, 3)]


def decode_tails(unpacker: Unpacker, num_rows: int, num_temperatures: int, loops: Loops) -> np.ndarray:
    """float32 [M, N]: the log of the mass outside the stored entries."""
    codes_MN = _take_codes(unpacker, num_rows, num_temperatures, loops)
    tails_MN = codes_MN.astype(np.float32) * np.float32(-1 / TAIL_STEPS_PER_NAT)  # both exact
    tails_MN[codes_MN == NO_TAIL] = -np.inf
    return tails_MN


def _take_codes(unpacker: Unpacker, num_rows: int, num_temperatures: int, loops: Loops) -> np.ndarray:
    """uint32 [M, N] of three planes per temperature."""
    codes_MN = np.empty((num_temperatures, num_rows), np.uint32)
    for codes_N in codes_MN:
        take_planes(unpacker, num_rows, loops, codes_N)
    return codes_MN


def encode_top_logits(top_N: np.ndarray) -> list[np.ndarray]:
    """Four planes of fp32 bits."""
    return to_planes(np.ascontiguousarray(top_N, np.float32).view(np.uint32), 4)


def decode_top_logits(unpacker: Unpacker, num_rows: int, loops: Loops) -> np.ndarray:
    """float32 [N]."""
    bits_N = take_planes(unpacker, num_rows, loops)
    bits_N |= unpacker.take(num_rows).astype(np.uint32) << 24
    top_N = bits_N.view(np.float32)
    if not np.isfinite(top_N).all():
        raise damaged("a top logit is infinite or NaN")
    return top_N


def encode_labels(rank_N: np.ndarray, logprob_N: np.ndarray, derived_N: np.ndarray) -> list[np.ndarray]:
    """Streams of the actual token's rank and log-probability.

    `derived_N` is what a reader would compute from the entries for ranks 1..8 (NaN elsewhere).
    """
    if (rank_N < 0).any():
        raise InvalidLabelsError(f"label rank {int(rank_N.min())} is negative; 1 is the top, 0 unknown")
    with np.errstate(invalid="ignore"):
        derivable = np.abs(derived_N - logprob_N) <= LABEL_TOLERANCE
    source_N = np.where(derivable, rank_N, LABEL_EXPLICIT)
    source_N[(rank_N == 0) & np.isnan(logprob_N)] = LABEL_UNKNOWN
    explicit = source_N == LABEL_EXPLICIT
    with np.errstate(invalid="ignore"):
        surprise = np.maximum(-logprob_N[explicit], 0)  # a NaN stays one
    return [
        source_N.astype(np.uint8),
        *to_planes(rank_N[explicit], 3),
        *to_planes(to_float24(np.abs(surprise)), 3),
    ]


LABEL_STREAMS = 7


def decode_labels(
    unpacker: Unpacker, num_rows: int, loops: Loops
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank int32 [N], log-probability float32 [N] (NaN where derived, unknown), and which rows derive it."""
    source_N = unpacker.take(num_rows)
    explicit = np.flatnonzero(source_N == LABEL_EXPLICIT)
    rank_N = source_N.astype(np.int32)
    logprob_N = np.full(num_rows, np.nan, np.float32)
    rank_N[explicit] = take_planes(unpacker, explicit.size, loops)
    logprob_N[explicit] = -from_float24(take_planes(unpacker, explicit.size, loops))
    is_derived_N = (source_N > LABEL_UNKNOWN) & (source_N != LABEL_EXPLICIT)
    highest = int((source_N * is_derived_N).max(initial=0))
    if highest > MAX_DERIVED_RANK:
        raise damaged(f"a label source is {highest}, not 0..{MAX_DERIVED_RANK} or {LABEL_EXPLICIT}")
    return rank_N, logprob_N, is_derived_N
