"""From what an engine returns to `LabelRows`, in whole arrays.

An engine hands over, for each labeled position, one row of C columns of ids and values:

    column      0             1 .. K        K+1 .. K+M          K+M+1 .. K+2M        K+2M+1
    value       actual token  top logits    logsumexp(l / T)    log tail mass at T   checksum
    id          its id        their ids     -1 ..               ..                   -(2M+1)

The 2M+1 last columns travel "in band", as if they were further top entries with impossible ids, so the
engine's own transport carries them in order through chunked prefill, preemption and tensor parallelism.
Through the public API only the first K+1 columns exist and the values are log-probabilities.

Shape legend: N label rows, K stored entries, M temperatures, V vocabulary, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from logitstore.errors import InvalidLabelsError
from logitstore.records import LabelRows

SMALLEST_IN_HALVES = 2.0**-16
"""From here on fp16 holds every bf16 number; nearer to 0 its numbers are 2^-24 apart."""
CHECKSUM_MASK = 0xFFFFFF
"""Checksums have 24 bits, so that a float32 column carries them exactly."""


@dataclass(frozen=True)
class ColumnLayout:
    """Where each column of a captured row stands."""

    top_k: int
    temperatures: tuple[float, ...]
    """Ascending from 1.0."""

    @property
    def num_temperatures(self) -> int:
        return len(self.temperatures)

    @property
    def num_tail_columns(self) -> int:
        return 2 * self.num_temperatures + 1

    @property
    def num_logprobs(self) -> int:
        """Entries to ask the engine for; it adds the actual token's column itself."""
        return self.top_k + self.num_tail_columns

    @property
    def num_columns(self) -> int:
        return 1 + self.num_logprobs

    @cached_property
    def sentinel_ids(self) -> np.ndarray:
        """int32 [2M+1], the impossible ids of the last columns."""
        return -np.arange(1, self.num_tail_columns + 1, dtype=np.int32)

    @cached_property
    def checksum_weights(self) -> np.ndarray:
        """int64 [C-1], odd and different for every column that is summed."""
        return 2 * np.arange(self.num_columns - 1, dtype=np.int64) + 1


@dataclass(frozen=True, slots=True)
class CapturedColumns:
    """Rows as they left the engine, still in its own arrays."""

    token_ids_NC: np.ndarray
    """int32 (int64 from vLLM's V2 runner)."""
    values_NC: np.ndarray
    """float32."""
    ranks_N: np.ndarray
    """int, ids with a value of at least the actual token's (1 = top)."""

    @property
    def num_rows(self) -> int:
        return self.values_NC.shape[0]

    def slice(self, start: int, stop: int) -> CapturedColumns:
        rows = slice(start, stop)
        return CapturedColumns(self.token_ids_NC[rows], self.values_NC[rows], self.ranks_N[rows])


def concatenate(parts: Sequence[CapturedColumns]) -> CapturedColumns:
    """Rows of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return CapturedColumns(
        np.concatenate([part.token_ids_NC for part in parts]),
        np.concatenate([part.values_NC for part in parts]),
        np.concatenate([part.ranks_N for part in parts]),
    )


def checksum(token_ids_NC: np.ndarray, values_NC: np.ndarray, layout: ColumnLayout) -> np.ndarray:
    """float32 [N]: position-weighted sum over (value bits xor id) of all but the last column, mod 2^24."""
    bits_NC = np.ascontiguousarray(values_NC[:, :-1], dtype=np.float32).view(np.int32)
    mixed_NC = bits_NC ^ token_ids_NC[:, :-1].astype(np.int32, copy=False)
    return ((mixed_NC @ layout.checksum_weights) & CHECKSUM_MASK).astype(np.float32)


def rows_from_columns(captured: CapturedColumns, layout: ColumnLayout, vocab_size: int) -> LabelRows:
    """Check rows captured inside the engine and name their parts.

    Raises:
        InvalidLabelsError: a row is not what the worker wrote (sentinels, checksum), or no distribution.
    """
    ids_NC, values_NC = captured.token_ids_NC, captured.values_NC
    if ids_NC.shape != (captured.num_rows, layout.num_columns) or values_NC.shape != ids_NC.shape:
        raise InvalidLabelsError(
            f"the engine returned rows of shape {ids_NC.shape} and {values_NC.shape}, the layout has "
            f"{layout.num_columns} columns; the capture inside the engine did not run for these rows"
        )
    tail = layout.top_k + 1
    if not np.array_equal(
        ids_NC[:, tail:], np.broadcast_to(layout.sentinel_ids, (len(ids_NC), layout.num_tail_columns))
    ):
        raise InvalidLabelsError(
            "rows came back without their tail columns; the capture inside the engine did not run for "
            'them. Use capture = "public_api", or a vLLM version that the capture knows'
        )
    _refuse(values_NC[:, -1] != checksum(ids_NC, values_NC, layout), "differ from their checksum")
    mid = tail + layout.num_temperatures
    logsumexp_NM = values_NC[:, tail:mid]
    log_tail_mass_NM = values_NC[:, mid : mid + layout.num_temperatures]
    _refuse(~np.isfinite(logsumexp_NM), "have a logsumexp that is not finite")
    _refuse(~(log_tail_mass_NM <= 0), "have a tail mass above 1 or NaN")
    return _label_rows(captured, layout.top_k, vocab_size, logsumexp_NM, log_tail_mass_NM)


def fit_in_halves(rows: LabelRows) -> LabelRows:
    """The rows of a bf16 teacher as fp16 holds them: only logits next to 0 change, by at most 2^-25."""
    tiny_NK = np.abs(rows.logits_NK) < SMALLEST_IN_HALVES
    if not tiny_NK.any():
        return rows
    logits_NK = rows.logits_NK.copy()
    logits_NK[tiny_NK] = logits_NK[tiny_NK].astype(np.float16)
    return replace(rows, logits_NK=logits_NK)


def rows_from_logprobs(captured: CapturedColumns, top_k: int, vocab_size: int) -> LabelRows:
    """Rows of the public API: log-probabilities at T=1, so `logsumexp` is 0 and the tail a complement.

    The tail, log(1 - sum of the stored probabilities), carries the rounding of vLLM's
    log-softmax: it is good to about 1e-5 absolutely (measured), which says little of a small tail. M is 1.
    """
    if captured.values_NC.shape != (captured.num_rows, top_k + 1):
        raise InvalidLabelsError(
            f"the engine returned rows of shape {captured.values_NC.shape}, {top_k} entries and the actual "
            f"token make {top_k + 1} columns; check the engine's max_logprobs"
        )
    head_N = np.exp(captured.values_NC[:, 1:].astype(np.float64)).sum(axis=1)
    _refuse(~(head_N < 1 + 1e-3), "hold more than the whole probability")
    with np.errstate(divide="ignore"):
        log_tail_mass_N = np.log(np.clip(1.0 - head_N, 0.0, None)).astype(np.float32)
    if top_k >= vocab_size:
        log_tail_mass_N[:] = -np.inf
    logsumexp_NM = np.zeros((captured.num_rows, 1), np.float32)
    return _label_rows(captured, top_k, vocab_size, logsumexp_NM, log_tail_mass_N[:, None])


def _label_rows(
    captured: CapturedColumns,
    top_k: int,
    vocab_size: int,
    logsumexp_NM: np.ndarray,
    log_tail_mass_NM: np.ndarray,
) -> LabelRows:
    logits_NK = np.ascontiguousarray(captured.values_NC[:, 1 : top_k + 1])
    token_ids_NK = np.ascontiguousarray(captured.token_ids_NC[:, 1 : top_k + 1], dtype=np.int32)
    _refuse((token_ids_NK < 0) | (token_ids_NK >= vocab_size), "hold ids outside the vocabulary")
    # Written so that NaN fails too.
    _refuse(~(logits_NK[:, 1:] <= logits_NK[:, :-1]), "do not descend along the rank")
    _refuse(~np.isfinite(logits_NK[:, 0]), "have no finite top logit")
    count_N = np.full(len(logits_NK), top_k, np.int32)
    if not np.isfinite(logits_NK[:, -1]).all():
        count_N = np.isfinite(logits_NK).sum(axis=1, dtype=np.int32)
        token_ids_NK[np.isneginf(logits_NK)] = 0
    return LabelRows(
        logits_NK=logits_NK,
        token_ids_NK=token_ids_NK,
        count_N=count_N,
        logsumexp_NM=np.ascontiguousarray(logsumexp_NM),
        log_tail_mass_NM=np.ascontiguousarray(log_tail_mass_NM),
        label_logprob_N=captured.values_NC[:, 0] - logsumexp_NM[:, 0],
        label_rank_N=captured.ranks_N.astype(np.int32, copy=False),
    )


def _refuse(bad: ArrayLike, what: str) -> None:
    """`bad` is of rows, or of the values in them."""
    found = np.asarray(bad)
    if found.any():
        bad_N = np.asarray(found.reshape(len(found), -1).any(axis=1))
        raise InvalidLabelsError(
            f"{int(bad_N.sum())} of {len(bad_N)} label rows {what} (first: row {int(bad_N.argmax())}); "
            "the teacher's output is damaged and is not stored"
        )


def columns_from_logits(
    logits_NV: np.ndarray,
    label_ids_N: np.ndarray,
    layout: ColumnLayout,
    given_NK: np.ndarray | None = None,
) -> CapturedColumns:
    """The captured columns of known full logits: what the worker does inside the engine, in numpy.

    It serves teachers without an engine and is the reference for the worker's arithmetic. Masses are
    summed in float64 around the largest logit, so a tail never cancels nor underflows. The entries are the
    top ones, or those at `given_NK` (int32 [N, K], -1 for none).
    """
    top_k, rows_N = layout.top_k, np.arange(len(logits_NV))
    if given_NK is None:
        given_NK = np.argpartition(-logits_NV, top_k - 1, axis=1)[:, :top_k]
    head_NK = np.where(given_NK >= 0, np.take_along_axis(logits_NV, np.maximum(given_NK, 0), axis=1), -np.inf)
    order_NK = np.argsort(-head_NK, axis=1, kind="stable")
    head_NK, given_NK = (np.take_along_axis(part_NK, order_NK, axis=1) for part_NK in (head_NK, given_NK))
    ids_NK = np.maximum(given_NK, 0)
    label_N = logits_NV[rows_N, label_ids_N]

    values_NC = np.empty((len(logits_NV), layout.num_columns), np.float32)
    token_ids_NC = np.empty(values_NC.shape, np.int32)
    values_NC[:, 0], token_ids_NC[:, 0] = label_N, label_ids_N
    values_NC[:, 1 : top_k + 1], token_ids_NC[:, 1 : top_k + 1] = head_NK, ids_NK
    token_ids_NC[:, top_k + 1 :] = layout.sentinel_ids

    tail_NV = logits_NV.astype(np.float64)
    real_N, real_K = np.nonzero(given_NK >= 0)
    tail_NV[real_N, ids_NK[real_N, real_K]] = -np.inf
    for index, temperature in enumerate(layout.temperatures):
        log_head_N = _logsumexp(head_NK.astype(np.float64) / temperature)
        log_tail_N = _logsumexp(tail_NV / temperature)
        logsumexp_N = np.logaddexp(log_head_N, log_tail_N)
        values_NC[:, top_k + 1 + index] = logsumexp_N
        mass_N = np.minimum(log_tail_N - logsumexp_N, 0.0)
        values_NC[:, top_k + 1 + layout.num_temperatures + index] = mass_N
    values_NC[:, -1] = checksum(token_ids_NC, values_NC, layout)
    ranks_N = (logits_NV >= label_N[:, None]).sum(axis=1).astype(np.int32)
    return CapturedColumns(token_ids_NC, values_NC, ranks_N)


def check_given_ids(captured: CapturedColumns, given_NK: np.ndarray) -> None:
    """Raises InvalidLabelsError where a row is not at the ids that were given for it (-1 for none)."""
    ids_NK = captured.token_ids_NC[:, 1 : given_NK.shape[1] + 1]
    wrong_NK = np.sort(ids_NK, axis=1) != np.sort(np.maximum(given_NK, 0), axis=1)
    _refuse(wrong_NK, "are not at the ids that were given")


def _logsumexp(x_NV: np.ndarray) -> np.ndarray:
    top_N = x_NV.max(axis=1, keepdims=True)
    safe_N = np.where(np.isneginf(top_N), 0.0, top_N)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x_NV - safe_N).sum(axis=1)) + safe_N[:, 0]
