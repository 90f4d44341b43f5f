"""How much of the teacher's mass the first K entries of a row leave out, against K."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.store import LogitStore

MAX_ROWS = 50_000
"""Rows looked at; the average over these is sure to far less than a percent."""


def outside_by_k(uris: Sequence[str]) -> dict[str, float]:
    """The teacher's mass outside the K likeliest tokens at temperature 1, averaged over the stores' rows.

    For K of 1, 2, 4 and so on up to the stored number of entries, by K as text (the ledger is JSON).
    """
    total: dict[int, float] = {}
    num_rows = 0
    for rows in (one.rows for uri in uris for one in LogitStore.open(uri).iter_sequences()):
        kept_NK = np.exp(rows.logits_NK.astype(np.float64) - rows.logsumexp_NM[:, :1])
        summed_NK = np.cumsum(kept_NK, axis=1)
        largest = kept_NK.shape[1]
        for k in (2**power for power in range(largest.bit_length()) if 2**power < largest):
            total[k] = total.get(k, 0.0) + float((1 - summed_NK[:, k - 1]).clip(0, 1).sum())
        tail_N = np.exp(rows.log_tail_mass_NM[:, 0].astype(np.float64))
        total[largest] = total.get(largest, 0.0) + float(tail_N.sum())
        num_rows += rows.num_rows
        if num_rows >= MAX_ROWS:
            break
    return {str(k): mass / num_rows for k, mass in sorted(total.items())}
