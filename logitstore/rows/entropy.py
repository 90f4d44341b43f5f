"""The teacher's entropy over its whole vocabulary, from a label row.

With b = 1/T and S(b) the log of the tail's sum, the tail's own distribution has the entropy
S - b dS/db, as every exponential family has. S is the polynomial of `logitstore.rows.temperature`, so its
slope is too; the result is kept within 0 and the log of the number of ids in the tail. Against the full
logits of a 135M teacher on 400 tokens of GSM8K (temperatures 1, 2, 4 stored, T = 1 to 4) the mean error
is at most 0.03 nats at K = 64 and 0.07 at T = 2, 0.14 at T = 1 for K = 8; taking the tail as a single
outcome instead is wrong by 0.4 nats at T = 1 and by 6.4 at T = 2.

Shape legend: N label rows, K stored entries per row, M temperatures.
"""

from __future__ import annotations

import numpy as np

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import log_tail_mass, logprobs, tail_sum_polynomial


def entropy(rows: LabelRows, spec: LabelSpec, temperature: float) -> np.ndarray:
    """float64 [N], nats.

    Raises:
        TemperatureError: `temperature` lies outside the stored range.
    """
    logprobs_NK = logprobs(rows, spec, temperature).astype(np.float64)
    log_tail_N = log_tail_mass(rows, spec, temperature).astype(np.float64)
    is_entry_NK = np.arange(rows.token_ids_NK.shape[1]) < rows.count_N[:, None]
    known_NK = np.where(is_entry_NK, logprobs_NK, 0.0)
    head_N = -(np.where(is_entry_NK, np.exp(known_NK), 0.0) * known_NK).sum(axis=1)

    outside_N = np.maximum(spec.num_outcomes - rows.count_N, 1).astype(np.float64)
    normaliser_N = rows.logits_NK[:, 0] / temperature - logprobs_NK[:, 0]
    slope_N = _tail_sum_slope(rows, spec, temperature)
    within_N = log_tail_N + normaliser_N - slope_N / temperature
    within_N = np.where(np.isnan(slope_N), np.log(outside_N), np.clip(within_N, 0, np.log(outside_N)))
    has_tail_N = np.isfinite(log_tail_N)
    tail_N = np.where(has_tail_N, np.exp(log_tail_N) * (within_N - np.where(has_tail_N, log_tail_N, 0)), 0.0)
    return head_N + tail_N


def _tail_sum_slope(rows: LabelRows, spec: LabelSpec, temperature: float) -> np.ndarray:
    """float64 [N]: dS/db of the interpolating polynomial; NaN where there is no tail."""
    coefficients = tail_sum_polynomial(rows, spec)
    powers = np.arange(1, coefficients.shape[1])
    return coefficients[:, 1:] @ (powers * (1 / temperature) ** (powers - 1))
