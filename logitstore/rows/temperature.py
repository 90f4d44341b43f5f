"""Log-probabilities and tail masses of label rows at any temperature.

At a stored temperature both are exact. Between stored temperatures the log tail *sum*
G(b) = log sum over v not in S of exp(b l_v), b = 1/T, is interpolated by the polynomial through the
stored points and the free knot G(0) = log(V - K): no temperature needs to be stored for it. Temperatures
above the highest stored one lie between it and the free knot; FORMAT.md has the error by K. Below the lowest
stored temperature, and at any other where a single one is stored, there is no bound on the error, and
TemperatureError says so.

Shape legend: N label rows, K stored entries, M temperatures, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from logitstore.errors import TemperatureError, UnsupportedInputError
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows


def log_tail_mass(rows: LabelRows, spec: LabelSpec, temperature: float) -> np.ndarray:
    """float32 [N]: log of the mass outside the stored entries at `temperature`; -inf where none is.

    Raises:
        TemperatureError: `temperature` is none that `check_readable` lets pass.
    """
    check_readable(spec, temperature)
    stored = _stored_index(spec, temperature)
    if stored is not None:
        return rows.log_tail_mass_NM[:, stored]
    tail_N = _interpolated_log_tail_sum(rows, spec, temperature)
    return (tail_N - np.logaddexp(tail_N, _head_logsumexp(rows, temperature))).astype(np.float32)


def logprobs(rows: LabelRows, spec: LabelSpec, temperature: float) -> np.ndarray:
    """float32 [N, K]: log-probabilities of the stored entries at `temperature`; -inf on padding.

    With `log_tail_mass` they are a distribution over K + 1 outcomes (up to the values' rounding).

    Raises:
        TemperatureError: `temperature` is none that `check_readable` lets pass.
    """
    check_readable(spec, temperature)
    stored = _stored_index(spec, temperature)
    if stored is not None:
        logsumexp_N = rows.logsumexp_NM[:, stored]
    else:
        tail_N = _interpolated_log_tail_sum(rows, spec, temperature)
        logsumexp_N = np.logaddexp(tail_N, _head_logsumexp(rows, temperature)).astype(np.float32)
    return (rows.logits_NK / np.float32(temperature) - logsumexp_N[:, None]).astype(np.float32)


def refuse_prefix(spec: LabelSpec, top_k: int) -> None:
    """Raise UnsupportedInputError where the first `top_k` entries would be taken for the top ones."""
    if top_k < spec.top_k and spec.support == "given":
        raise UnsupportedInputError(
            f"the first {top_k} entries were asked for, but the rows are at ids that were given, and not "
            "at the teacher's top ones: read all of them (leave top_k out)"
        )


def cut_labels(spec: LabelSpec, top_k: int | None) -> LabelSpec:
    """What rows of a store hold after `cut_sequences`. Raises UnsupportedInputError, as `refuse_prefix`."""
    if top_k is not None:
        refuse_prefix(spec, top_k)
    return spec if top_k is None else dataclasses.replace(spec, top_k=min(top_k, spec.top_k))


def cut_sequences(
    sequences: Iterable[LabeledSequence], spec: LabelSpec, top_k: int | None
) -> Iterator[LabeledSequence]:
    """Sequences with the first `top_k` entries of their rows and all else as it is; None cuts nothing."""
    if top_k is None:
        yield from sequences
        return
    for sequence in sequences:
        yield dataclasses.replace(sequence, rows=truncate(sequence.rows, spec, top_k))


def truncate(rows: LabelRows, spec: LabelSpec, top_k: int) -> LabelRows:
    """The first `top_k` entries of each row, the mass of the others moved to the tail.

    The tail is the sum of masses, nothing is subtracted, so it is as exact as the rows themselves.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_k >= rows.token_ids_NK.shape[1]:
        return rows
    tail_NM = np.empty_like(rows.log_tail_mass_NM)
    for index, temperature in enumerate(spec.temperatures):
        cut_NK = rows.logits_NK[:, top_k:] / np.float32(temperature) - rows.logsumexp_NM[:, index, None]
        with np.errstate(under="ignore", divide="ignore"):
            cut_N = np.log(np.exp(cut_NK.astype(np.float64)).sum(axis=1))
            tail_NM[:, index] = np.minimum(np.logaddexp(cut_N, rows.log_tail_mass_NM[:, index]), 0)
    return LabelRows(
        logits_NK=rows.logits_NK[:, :top_k],
        token_ids_NK=rows.token_ids_NK[:, :top_k],
        count_N=np.minimum(rows.count_N, top_k),
        logsumexp_NM=rows.logsumexp_NM,
        log_tail_mass_NM=tail_NM,
        label_logprob_N=rows.label_logprob_N,
        label_rank_N=rows.label_rank_N,
    )


def tail_sum_polynomial(rows: LabelRows, spec: LabelSpec) -> np.ndarray:
    """float64 [N, M + 1]: coefficients of G(b), the log tail sum, by powers of b = 1 / T.

    Through the M stored temperatures and the free knot G(0) = log(V - K). Rows without a tail at some
    stored temperature are NaN. Its derivative gives the entropy of the tail: G - b G'.
    """
    knots = np.array([0.0, *(1 / stored for stored in spec.temperatures)])
    with np.errstate(divide="ignore"):
        free_N = np.log((spec.num_outcomes - rows.count_N).astype(np.float64))
    sums_NM = rows.log_tail_mass_NM.astype(np.float64) + rows.logsumexp_NM
    points_NM = np.concatenate([free_N[:, None], sums_NM], axis=1)
    points_NM[~np.isfinite(points_NM).all(axis=1)] = np.nan
    return points_NM @ np.linalg.inv(np.vander(knots, increasing=True)).T


def prefix_log_tail_mass(
    logits_NK: np.ndarray,
    above_MN: np.ndarray,
    stored_MN: np.ndarray,
    is_cut_N: np.ndarray,
    temperatures: Sequence[float],
) -> np.ndarray:
    """float32 [M, N]: log tail masses of the first K entries of rows that store more of them.

    The entries cut off were not read, so the mass is 1 minus what is left, taken relative to the top
    entry, whose gap is exactly 0: with d = logsumexp(l / T) - top / T (`above_MN`),
        log tail = log(expm1(d) - sum over k >= 1 of exp(-gap_k / T)) - d.
    Never below the tail stored for all entries. Rows not in `is_cut_N` keep their stored tail.
    """
    tail_MN = stored_MN.copy()
    rows = np.flatnonzero(is_cut_N)
    gaps_NK = logits_NK[rows, 1:] - logits_NK[rows, :1]
    for index, temperature in enumerate(temperatures):
        above_N = above_MN[index, rows].astype(np.float64)
        others_N = np.exp(gaps_NK / np.float32(temperature)).sum(axis=1, dtype=np.float64)
        with np.errstate(divide="ignore", over="ignore"):
            left_N = np.log(np.maximum(np.expm1(above_N) - others_N, 0)) - above_N
        tail_MN[index, rows] = np.maximum(np.minimum(left_N, 0), stored_MN[index, rows])
    return tail_MN


def check_readable(spec: LabelSpec, temperature: float) -> None:
    """Raises TemperatureError below the lowest stored temperature, and for any but the only stored one."""
    low, stored = spec.temperatures[0], ", ".join(f"{one:g}" for one in spec.temperatures)
    if _stored_index(spec, temperature) is not None:
        return
    if len(spec.temperatures) == 1:
        raise TemperatureError(
            f"temperature {temperature:g} is not {low:g}, the only one whose normaliser is stored: one is "
            "too few to interpolate; take that one, label again with more (labels.temperatures), or "
            "renormalise the stored entries by name"
        )
    if not low < temperature < math.inf:
        raise TemperatureError(
            f"temperature {temperature:g} is below {low:g}, the lowest of the stored normalisers ({stored}); "
            "choose one from there on, label again with it, or renormalise the stored entries by name"
        )


def _stored_index(spec: LabelSpec, temperature: float) -> int | None:
    for index, stored in enumerate(spec.temperatures):
        if abs(stored - temperature) <= 1e-6 * stored:
            return index
    return None


def _head_logsumexp(rows: LabelRows, temperature: float) -> np.ndarray:
    """float64 [N]: log of the sum of exp(l / T) over the stored entries."""
    scaled_NK = rows.logits_NK.astype(np.float64) / temperature
    top_N = scaled_NK[:, 0]
    return top_N + np.log(np.exp(scaled_NK - top_N[:, None]).sum(axis=1))


def _interpolated_log_tail_sum(rows: LabelRows, spec: LabelSpec, temperature: float) -> np.ndarray:
    """float64 [N]: log of the sum of exp(l / T) over the ids that are not stored; -inf without a tail."""
    powers = (1 / temperature) ** np.arange(len(spec.temperatures) + 1)
    tail_N = tail_sum_polynomial(rows, spec) @ powers
    return np.where(np.isnan(tail_N), -np.inf, tail_N)
