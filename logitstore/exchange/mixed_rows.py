"""Two teachers' rows of one sequence as those of one: the weighted sum of their probabilities at T=1.

Over the ids that both know the sum is exact, and so is the tail: each teacher's mass outside these ids is its
own tail and its other entries.

Shape legend: N label rows, K stored entries, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import Manifest
from logitstore.records import UNKNOWN_RANK, LabeledSequence, LabelRows, Segment
from logitstore.rows.silent_rows import spread_rows


def mix_sequences(
    one: LabeledSequence, other: LabeledSequence, weights: tuple[float, float], manifest: Manifest
) -> LabeledSequence:
    """The first one's sequence with the mixture's rows where both have rows.

    Raises InvalidLabelsError for a row that counts in a loss and has no id that both know.
    """
    start = max(one.label_start, other.label_start)
    stop = min(one.label_start + one.rows.num_rows, other.label_start + other.rows.num_rows)
    num_rows = max(0, stop - start)
    parts = [_cut(sequence, start, num_rows) for sequence in (one, other)]
    mask_N = parts[0][1] & parts[1][1]
    rows, has_any_N = _mix_rows(parts[0][0], parts[1][0], weights, manifest.labels.vocab_size)
    if (mask_N & ~has_any_N).any():
        raise InvalidLabelsError(
            f"record {one.record_id!r:.120} has no id that both stores know at "
            f"position {start + int((mask_N & ~has_any_N).argmax())}; store more entries "
            "(labels.top_k) of both teachers"
        )
    kept = LabelRows(*(getattr(rows, name)[has_any_N] for name in LabelRows.__slots__))
    return dataclasses.replace(
        one,
        label_start=start,
        rows=spread_rows(kept, np.flatnonzero(has_any_N), num_rows, manifest.labels.num_outcomes),
        loss_mask_N=mask_N,
        flags=tuple(dict.fromkeys((*one.flags, *other.flags))),
        segments_T=one.segments_T if one.segments_T is not None else _segments_of(other, one.prompt_length),
    )


def _segments_of(other: LabeledSequence, prompt_length: int) -> np.ndarray | None:
    """The other's, for a sequence whose prompt has this length."""
    if other.segments_T is None:
        return None
    segments_T = other.segments_T.copy()
    segments_T[:prompt_length] = Segment.CONTEXT
    return segments_T


def _cut(sequence: LabeledSequence, start: int, num_rows: int) -> tuple[LabelRows, np.ndarray]:
    span = slice(start - sequence.label_start, start - sequence.label_start + num_rows)
    rows = LabelRows(*(getattr(sequence.rows, name)[span] for name in LabelRows.__slots__))
    return rows, sequence.loss_mask_N[span]


def _mix_rows(
    one: LabelRows, other: LabelRows, weights: Sequence[float], vocab_size: int
) -> tuple[LabelRows, np.ndarray]:
    """Rows at T=1 over the ids that both have, and bool [N] which have any.

    Logits are log-probabilities, so the normaliser is 0.
    """
    num_rows = one.num_rows
    ids, probabilities, others_N = [], [], []
    for rows in (one, other):
        real_NK = np.arange(rows.token_ids_NK.shape[1]) < rows.count_N[:, None]
        p_NK = np.where(real_NK, np.exp(rows.logits_NK - rows.logsumexp_NM[:, :1]).astype(np.float64), 0.0)
        keys = np.arange(num_rows)[:, None] * np.int64(vocab_size) + rows.token_ids_NK
        ids.append(np.where(real_NK, keys, -1))
        probabilities.append(p_NK)
        others_N.append(np.exp(rows.log_tail_mass_NM[:, 0].astype(np.float64)))
    shared_NK = np.isin(ids[0], ids[1]) & (ids[0] >= 0)
    order = np.argsort(ids[1], axis=None)
    place = np.searchsorted(ids[1].ravel()[order], ids[0]).clip(max=max(0, order.size - 1))
    partner_NK = np.where(shared_NK, probabilities[1].ravel()[order[place]], 0.0)
    own_NK = np.where(shared_NK, probabilities[0], 0.0)
    mixed_NK = weights[0] * own_NK + weights[1] * partner_NK
    outside = (
        others_N[0] + (probabilities[0] - own_NK).sum(axis=1),
        others_N[1] + probabilities[1].sum(axis=1) - partner_NK.sum(axis=1),
    )
    tail_N = weights[0] * outside[0] + weights[1] * np.maximum(outside[1], 0)
    rank_NK = np.argsort(np.where(shared_NK, -mixed_NK, np.inf), axis=1, kind="stable")
    count_N = (mixed_NK > 0).sum(axis=1).astype(np.int32)
    width = max(1, int(count_N.max(initial=0)))
    rank_NK = rank_NK[:, :width]
    left_NK = np.arange(width) < count_N[:, None]
    with np.errstate(divide="ignore"):
        logits_NK = np.log(np.take_along_axis(mixed_NK, rank_NK, axis=1))
        log_tail_N = np.minimum(np.log(tail_N), 0)
        labels = [np.exp(rows.label_logprob_N.astype(np.float64)) for rows in (one, other)]
        label_N = np.minimum(np.log(weights[0] * labels[0] + weights[1] * labels[1]), 0)
    ids_NK = np.take_along_axis(one.token_ids_NK, rank_NK, axis=1)
    rows = LabelRows(
        logits_NK=np.where(left_NK, logits_NK, -np.inf).astype(np.float32),
        token_ids_NK=np.where(left_NK, ids_NK, 0).astype(np.int32),
        count_N=count_N,
        logsumexp_NM=np.zeros((num_rows, 1), np.float32),
        log_tail_mass_NM=log_tail_N[:, None].astype(np.float32),
        label_logprob_N=label_N.astype(np.float32),
        label_rank_N=np.full(num_rows, UNKNOWN_RANK, np.int32),
    )
    return rows, count_N > 0
