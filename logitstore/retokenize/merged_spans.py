"""Student's tokens that are several tokens of the teacher, as entries of their own.

The probability of the actual token is the product of the teacher's along its own tokens. This assumes
that the teacher would write the same text in no other way, and it is known for the actual token only: not
for other long tokens that begin alike, whose mass stays with their beginning. The row becomes that of a
teacher whose first token of the span is two tokens: this one, and the rest of the old one. So at T=1 the
normaliser stays, and at other temperatures it follows from the same logits.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from logitstore.records import LabelRows

LEAST_REST = 1e-6
"""Share of the first token below which nothing of it is left: the span is all that follows it."""


@dataclass(frozen=True, slots=True)
class Span:
    """By row, the actual token of the student where it is several of the teacher's."""

    is_span_N: np.ndarray
    token_ids_N: np.ndarray
    """The student's id of the whole."""
    first_logprob_N: np.ndarray
    """float64, of the teacher's first token, at T=1."""
    following_logprob_N: np.ndarray
    """float64, of the others, each given those before."""
    first_ids_N: np.ndarray
    """int32, the student's id that equals the teacher's first token; -1 where none does."""


def add_merged_spans(rows: LabelRows, span: Span, temperatures: tuple[float, ...]) -> LabelRows:
    """Rows with an entry more where there is a span; the first token's entry, or the tail, has less."""
    if not span.is_span_N.any():
        return rows
    num_rows, width = rows.token_ids_NK.shape
    logsumexp_N = rows.logsumexp_NM[:, 0].astype(np.float64)
    first_N = np.where(span.is_span_N, span.first_logprob_N + logsumexp_N, -np.inf)
    share_N = np.exp(np.where(span.is_span_N, span.following_logprob_N, -np.inf))
    real_NK = np.arange(width) < rows.count_N[:, None]
    hit_NK = real_NK & (rows.token_ids_NK == span.first_ids_N[:, None]) & span.is_span_N[:, None]
    is_entry_N = hit_NK.any(axis=1)
    stored_N = np.take_along_axis(rows.logits_NK, hit_NK.argmax(axis=1)[:, None], axis=1)[:, 0]
    first_N = np.where(is_entry_N, stored_N, first_N)
    whole_N = first_N + np.where(span.is_span_N, span.following_logprob_N, -np.inf)
    with np.errstate(divide="ignore"):
        left_N = np.where(1 - share_N > LEAST_REST, first_N + np.log1p(-np.minimum(share_N, 1)), -np.inf)
    logsumexp_NM, tail_NM = _masses(rows, first_N, whole_N, left_N, is_entry_N, span.is_span_N, temperatures)
    logits_NK = np.full((num_rows, width + 1), -np.inf)
    ids_NK = np.zeros((num_rows, width + 1), np.int32)
    logits_NK[:, :width] = np.where(hit_NK, left_N[:, None], rows.logits_NK)
    ids_NK[:, :width] = rows.token_ids_NK
    logits_NK[:, width] = whole_N
    ids_NK[:, width] = span.token_ids_N
    order_NK = np.argsort(-logits_NK, axis=1, kind="stable")
    logits_NK = np.take_along_axis(logits_NK, order_NK, axis=1).astype(np.float32)
    count_N = np.isfinite(logits_NK).sum(axis=1).astype(np.int32)
    ids_NK = np.where(np.isfinite(logits_NK), np.take_along_axis(ids_NK, order_NK, axis=1), 0)
    label_N = (whole_N - logsumexp_NM[:, 0]).astype(np.float32)
    rank_N = (logits_NK >= whole_N.astype(np.float32)[:, None]).sum(axis=1)
    return replace(
        rows,
        logits_NK=logits_NK,
        token_ids_NK=ids_NK.astype(np.int32),
        count_N=count_N,
        logsumexp_NM=logsumexp_NM,
        log_tail_mass_NM=tail_NM,
        label_logprob_N=np.where(span.is_span_N, np.minimum(label_N, 0), rows.label_logprob_N),
        label_rank_N=np.where(span.is_span_N, rank_N, rows.label_rank_N).astype(np.int32),
    )


def _masses(
    rows: LabelRows,
    first_N: np.ndarray,
    whole_N: np.ndarray,
    left_N: np.ndarray,
    is_entry_N: np.ndarray,
    is_span_N: np.ndarray,
    temperatures: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, M] twice: normalisers and log tail masses, the first token's logit divided in two."""
    logsumexp_NM = rows.logsumexp_NM.copy()
    tail_NM = rows.log_tail_mass_NM.copy()
    for index, temperature in enumerate(temperatures):
        old_N = rows.logsumexp_NM[:, index].astype(np.float64)
        first, whole, left = (np.exp(part_N / temperature - old_N) for part_N in (first_N, whole_N, left_N))
        tail_N = np.exp(tail_NM[:, index].astype(np.float64))
        tail_N = np.where(is_entry_N, tail_N, np.maximum(tail_N - first + left, 0))
        change_N = np.log1p(whole + left - first) if index else np.zeros(len(old_N))
        with np.errstate(divide="ignore"):
            log_tail_N = np.minimum(np.log(tail_N) - change_N, 0)
        logsumexp_NM[:, index] = np.where(is_span_N, old_N + change_N, old_N)
        tail_NM[:, index] = np.where(is_span_N, log_tail_N, tail_NM[:, index])
    return logsumexp_NM, tail_NM
