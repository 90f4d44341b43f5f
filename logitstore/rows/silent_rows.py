"""Rows that say nothing, for positions that must have one and for which there is no distribution.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from logitstore.records import LabeledSequence, LabelRows

STORED_ERROR = 1e-3
"""Nats by which a stored normaliser may be off, and more: 24 bits of a float are kept."""


def no_rows(num_temperatures: int) -> LabelRows:
    """Zero rows of one entry, as sequences of a store of texts alone have them."""
    return LabelRows(
        logits_NK=np.zeros((0, 1), np.float32),
        token_ids_NK=np.zeros((0, 1), np.int32),
        count_N=np.zeros(0, np.int32),
        logsumexp_NM=np.zeros((0, num_temperatures), np.float32),
        log_tail_mass_NM=np.zeros((0, num_temperatures), np.float32),
        label_logprob_N=np.zeros(0, np.float32),
        label_rank_N=np.zeros(0, np.int32),
    )


def without_rows(sequence: LabeledSequence) -> LabeledSequence:
    """The sequence as a store of texts alone keeps it."""
    return replace(sequence, rows=no_rows(1), loss_mask_N=np.zeros(0, bool))


def text_rows(token_ids_N: np.ndarray) -> LabelRows:
    """Rows in which the actual token has all mass: hard labels, and nothing of a teacher's distribution."""
    zeros_N1 = np.zeros((len(token_ids_N), 1), dtype=np.float32)
    return LabelRows(
        logits_NK=zeros_N1,
        token_ids_NK=token_ids_N[:, None],
        count_N=np.ones(len(token_ids_N), dtype=np.int32),
        logsumexp_NM=zeros_N1,
        log_tail_mass_NM=np.full_like(zeros_N1, -np.inf),
        label_logprob_N=zeros_N1[:, 0],
        label_rank_N=np.ones(len(token_ids_N), dtype=np.int32),
    )


def with_text_rows(sequence: LabeledSequence) -> LabeledSequence:
    """A sequence of a store of texts alone, with hard labels from `label_start` on, all counted."""
    token_ids_N = sequence.token_ids_T[sequence.label_start :]
    return replace(sequence, rows=text_rows(token_ids_N), loss_mask_N=np.ones(len(token_ids_N), dtype=bool))


def spread_rows(rows: LabelRows, place_N: np.ndarray, num_rows: int, vocab_size: int) -> LabelRows:
    """The rows at their places; between them rows that say nothing: one entry of an even distribution."""
    width = max(1, rows.token_ids_NK.shape[1])
    num_temperatures = rows.logsumexp_NM.shape[1]
    even, even_tail = np.log(vocab_size), np.log1p(-1 / vocab_size)
    logits_NK = np.full((num_rows, width), -np.inf, np.float32)
    logits_NK[:, 0] = 0
    full = LabelRows(
        logits_NK=logits_NK,
        token_ids_NK=np.zeros((num_rows, width), np.int32),
        count_N=np.ones(num_rows, np.int32),
        logsumexp_NM=np.full((num_rows, num_temperatures), even, np.float32),
        log_tail_mass_NM=np.full((num_rows, num_temperatures), even_tail, np.float32),
        label_logprob_N=np.full(num_rows, np.nan, np.float32),
        label_rank_N=np.zeros(num_rows, np.int32),
    )
    for name in LabelRows.__slots__:
        getattr(full, name)[place_N] = getattr(rows, name)
    return full


def is_silent(rows: LabelRows, vocab_size: int) -> np.ndarray:
    """bool [N]: rows that `spread_rows` put between others, of that vocabulary."""
    one_N = (rows.count_N == 1) & (rows.logits_NK[:, 0] == 0) & (rows.token_ids_NK[:, 0] == 0)
    even_N = np.isclose(rows.logsumexp_NM, np.log(vocab_size), rtol=0, atol=STORED_ERROR).all(axis=1)
    return one_N & even_N & np.isnan(rows.label_logprob_N)
