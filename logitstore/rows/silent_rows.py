"""Rows that say nothing, for positions that must have one and for which there is no distribution.

Shape legend: N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import numpy as np

from logitstore.records import LabelRows


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
