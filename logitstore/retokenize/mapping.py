"""A teacher's label rows over another vocabulary.

An entry whose bytes are a token of the student keeps its logit under the student's id. The mass of the
others joins the tail, at every stored temperature by its own sum, so the normalisers stay as they are. A
position without a row of its own gets one that says nothing, and is masked.

Shape legend: T the teacher's tokens, S the student's, N label rows (of the student's sequence unless it
says otherwise), K stored entries, M temperatures, V the teacher's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from logitstore.manifest.fields import LabelSpec
from logitstore.records import UNKNOWN_RANK, LabeledSequence, LabelRows, Segment
from logitstore.retokenize.boundaries import NOT_SHARED, Writing
from logitstore.retokenize.merged_spans import Span, add_merged_spans
from logitstore.retokenize.tokenization import NO_ID
from logitstore.rows.silent_rows import spread_rows

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a sequence's labels is left."""

    num_rows: int = 0
    """Rows of the source that count in a loss."""
    num_kept: int = 0
    """Those that are rows of the student, and count."""
    num_known_labels: int = 0
    """Those of them whose actual token has a known log-probability."""
    mass_stored: float = 0.0
    """Sum over the kept rows of the mass that the source stores at T=1."""
    mass_kept: float = 0.0
    """Sum over the kept rows of the mass of entries that have an equal token."""

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.num_rows + other.num_rows,
            self.num_kept + other.num_kept,
            self.num_known_labels + other.num_known_labels,
            self.mass_stored + other.mass_stored,
            self.mass_kept + other.mass_kept,
        )


@dataclass(frozen=True)
class RowMap:
    """Maps sequences of one store."""

    equal_V: np.ndarray
    """int32, the student's id of each of the teacher's, or NO_ID."""
    labels: LabelSpec
    """Shape of the labels that are written."""
    teacher_vocab_size: int
    merge_spans: bool

    def sequence(self, source: LabeledSequence, writing: Writing) -> tuple[LabeledSequence, Kept]:
        """The sequence in the student's tokens."""
        start, row_N = _rows_of_positions(source, writing)
        labels_N = np.append(writing.token_ids_S, NO_ID)[start : start + len(row_N)]
        has_row_N = row_N != NO_ROW
        rows, mass_NM = self._entries(source.rows, row_N[has_row_N])
        keeps_any_N = rows.count_N > 0
        place_N = np.flatnonzero(has_row_N)[keeps_any_N]
        found = _take(rows, keeps_any_N)
        found = self._labels(source, found, row_N[place_N], labels_N[place_N])
        if self.merge_spans:
            first_N = self.equal_V[np.append(source.token_ids_T, 0)[source.label_start + row_N[place_N]]]
            spans = _spans(source, writing, start + place_N, labels_N[place_N], first_N, found)
            found = add_merged_spans(found, spans, self.labels.temperatures)
        mask_N = np.zeros(len(row_N), bool)
        mask_N[place_N] = source.loss_mask_N[row_N[place_N]]
        sequence = replace(
            source,
            token_ids_T=writing.token_ids_S,
            prompt_length=writing.prompt_length,
            label_start=start,
            rows=spread_rows(found, place_N, len(row_N), self.teacher_vocab_size),
            loss_mask_N=mask_N,
            segments_T=_segments(source, writing),
        )
        counts_N = mask_N[place_N]
        stored_N, kept_N = mass_NM[keeps_any_N].T
        kept = Kept(
            num_rows=int(source.loss_mask_N.sum()),
            num_kept=int(counts_N.sum()),
            num_known_labels=int(np.isfinite(found.label_logprob_N[counts_N]).sum()),
            mass_stored=float(stored_N[counts_N].sum()),
            mass_kept=float(kept_N[counts_N].sum()),
        )
        return sequence, kept

    def _entries(self, source: LabelRows, row_N: np.ndarray) -> tuple[LabelRows, np.ndarray]:
        """Rows of the mapped entries, some of them maybe without any, and float64 [N, 2]: the stored mass at
        T=1 and what is kept of it. Labels are left as they are."""
        logits_NK, count_N = source.logits_NK[row_N], source.count_N[row_N]
        real_NK = np.arange(logits_NK.shape[1]) < count_N[:, None]
        ids_NK = np.where(real_NK, self.equal_V[source.token_ids_NK[row_N]], NO_ID)
        kept_NK = ids_NK != NO_ID
        logsumexp_NM, tail_NM = source.logsumexp_NM[row_N], source.log_tail_mass_NM[row_N].copy()
        mass_NM = np.zeros((len(row_N), 2))
        cut_NK = np.where(real_NK & ~kept_NK, logits_NK, -np.inf)
        has_cut_N = (real_NK & ~kept_NK).any(axis=1)
        for index, temperature in enumerate(self.labels.temperatures):
            cut_N = _mass(cut_NK, logsumexp_NM[:, index], temperature)
            with np.errstate(divide="ignore"):
                joined_N = np.minimum(np.logaddexp(np.log(cut_N), tail_NM[:, index]), 0)
            tail_NM[:, index] = np.where(has_cut_N, joined_N, tail_NM[:, index])
            if index == 0:
                mass_NM[:, 1] = _mass(np.where(kept_NK, logits_NK, -np.inf), logsumexp_NM[:, 0], 1.0)
                mass_NM[:, 0] = mass_NM[:, 1] + cut_N
        order_NK = np.argsort(~kept_NK, axis=1, kind="stable")
        counts_N = kept_NK.sum(axis=1).astype(np.int32)
        width = max(1, int(counts_N.max(initial=0)))
        order_NK = order_NK[:, :width]
        left_NK = np.arange(width) < counts_N[:, None]
        rows = LabelRows(
            logits_NK=np.where(left_NK, np.take_along_axis(logits_NK, order_NK, axis=1), -np.inf).astype(
                np.float32
            ),
            token_ids_NK=np.where(left_NK, np.take_along_axis(ids_NK, order_NK, axis=1), 0).astype(np.int32),
            count_N=counts_N,
            logsumexp_NM=logsumexp_NM,
            log_tail_mass_NM=tail_NM,
            label_logprob_N=source.label_logprob_N[row_N],
            label_rank_N=source.label_rank_N[row_N],
        )
        return rows, mass_NM

    def _labels(
        self, source: LabeledSequence, rows: LabelRows, row_N: np.ndarray, labels_N: np.ndarray
    ) -> LabelRows:
        """The student's actual tokens: from the entries, else from the teacher's own label where it is the
        same token, else unknown. A rank counts mapped entries, so it is known only for them."""
        hit_NK = (rows.token_ids_NK == labels_N[:, None]) & (
            np.arange(rows.token_ids_NK.shape[1]) < rows.count_N[:, None]
        )
        is_stored_N = hit_NK.any(axis=1)
        logit_N = np.where(
            is_stored_N, np.take_along_axis(rows.logits_NK, hit_NK.argmax(1)[:, None], 1)[:, 0], 0
        )
        theirs_N = np.append(source.token_ids_T, 0)[source.label_start + row_N]
        is_token_N = source.label_start + row_N < len(source.token_ids_T)
        is_same_N = is_token_N & (self.equal_V[theirs_N] == labels_N) & (labels_N != NO_ID)
        logprob_N = np.where(
            is_stored_N,
            np.minimum(logit_N - rows.logsumexp_NM[:, 0], 0),
            np.where(is_same_N, rows.label_logprob_N, np.nan),
        )
        # The teacher's own number is nearer than one from rounded values.
        logprob_N = np.where(is_same_N & np.isfinite(rows.label_logprob_N), rows.label_logprob_N, logprob_N)
        rank_N = np.where(is_stored_N, (rows.logits_NK >= logit_N[:, None]).sum(axis=1), UNKNOWN_RANK)
        return replace(
            rows, label_logprob_N=logprob_N.astype(np.float32), label_rank_N=rank_N.astype(np.int32)
        )


def _segments(source: LabeledSequence, writing: Writing) -> np.ndarray | None:
    """For each of the student's tokens, the segment of the teacher's token in which it begins."""
    if source.segments_T is None or not len(source.segments_T):
        return None
    begins_S = np.searchsorted(writing.offsets_T[:-1], writing.offsets_S[:-1], side="right") - 1
    shared_S = writing.shared_S[:-1]
    segments_S = source.segments_T[np.where(shared_S == NOT_SHARED, begins_S, shared_S)]
    segments_S[: writing.prompt_length] = Segment.CONTEXT
    return segments_S


def _rows_of_positions(source: LabeledSequence, writing: Writing) -> tuple[int, np.ndarray]:
    """The student's first label position, and for each from there on the source's row, or NO_ROW.

    The positions are those that lie where the source has rows, at least 1 and in one piece.
    """
    num_rows, first_T = source.rows.num_rows, source.label_start
    if not num_rows:
        return min(max(1, writing.prompt_length), len(writing.token_ids_S) + 1), np.zeros(0, np.int64)
    low, high = writing.offsets_T[[first_T, first_T + num_rows - 1]]
    start = max(1, int(np.searchsorted(writing.offsets_S, low, side="left")))
    end = max(start, int(np.searchsorted(writing.offsets_S, high, side="right")))
    shared_N = writing.shared_S[start:end].astype(np.int64)
    row_N = np.where(shared_N == NOT_SHARED, NO_ROW, shared_N - first_T)
    return start, np.where((row_N >= 0) & (row_N < num_rows), row_N, NO_ROW)


def _spans(
    source: LabeledSequence,
    writing: Writing,
    position_N: np.ndarray,
    labels_N: np.ndarray,
    first_ids_N: np.ndarray,
    rows: LabelRows,
) -> Span:
    """The student's actual tokens that are several of the teacher's and that no entry stands for.

    `first_ids_N` are the student's ids of the teacher's tokens at these positions, NO_ID where none is equal.
    """
    begin_N = writing.shared_S[position_N].astype(np.int64)
    end_N = np.append(writing.shared_S, NOT_SHARED)[position_N + 1].astype(np.int64)
    stored_N = ((rows.token_ids_NK == labels_N[:, None]) & np.isfinite(rows.logits_NK)).any(axis=1)
    logprob_T = np.full(len(source.token_ids_T) + 1, np.nan)
    there = source.label_start + np.arange(source.rows.num_rows)
    logprob_T[there] = source.rows.label_logprob_N
    rest_T = np.concatenate([[0.0], np.cumsum(np.nan_to_num(logprob_T, nan=0.0))])
    unknown_T = np.concatenate([[0], np.cumsum(np.isnan(logprob_T))])
    is_span_N = (labels_N != NO_ID) & (end_N > begin_N + 1) & ~stored_N
    end_N = np.where(is_span_N, end_N, begin_N)
    is_span_N &= unknown_T[end_N] == unknown_T[begin_N]
    first_N = np.where(is_span_N, logprob_T[begin_N], np.nan)
    following_N = rest_T[end_N] - rest_T[np.minimum(begin_N + 1, end_N)]
    return Span(is_span_N, labels_N.astype(np.int32), first_N, following_N, first_ids_N)


def _mass(logits_NK: np.ndarray, logsumexp_N: np.ndarray, temperature: float) -> np.ndarray:
    """float64 [N]: sum of exp(l / T) over exp(logsumexp)."""
    scaled_NK = logits_NK / np.float32(temperature) - logsumexp_N[:, None]
    return np.exp(scaled_NK).sum(axis=1, dtype=np.float64)


def _take(rows: LabelRows, which_N: np.ndarray) -> LabelRows:
    if which_N.all():
        return rows
    return LabelRows(*(getattr(rows, name)[which_N] for name in LabelRows.__slots__))
