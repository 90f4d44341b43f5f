"""Label rows from the log-probabilities that other projects keep at T=1.

Shape legend: N label rows, K stored entries.
"""

from __future__ import annotations

import numpy as np

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import label_statistics
from logitstore.records import LabelRows

LOWEST_LOGPROB = -1000.0
"""At and below this a value stands for "no entry"."""
MOST_MASS = 2.0
"""Entries that add up to more are no rounded log-probabilities, but logits, or bytes read by another rule."""
INT32 = np.iinfo(np.int32)


def whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """int32 of the same numbers. Raises UnsupportedInputError for what a cast would make others of."""
    if values.size and values.dtype.kind not in "iu":
        raise UnsupportedInputError(f"{what} are of the type {values.dtype}; write them as whole numbers")
    for value in (int(values.min()), int(values.max())) if values.size else ():
        if not INT32.min <= value <= INT32.max:
            raise UnsupportedInputError(f"{what} hold {value}, and no id is beyond 32 bits; correct them")
    return values.astype(np.int32)


def rows_from_logprobs(
    logprobs_NK: np.ndarray, ids_NK: np.ndarray, label_N: np.ndarray, *, vocab_size: int
) -> LabelRows:
    """Rows at T=1 of entries in any order, values at or below LOWEST_LOGPROB being padding.

    The tail is 1 minus the entries in float64. Where rounding made them more than 1 in all, logsumexp
    takes up the excess and the tail is empty. Raises UnsupportedInputError for ids outside the
    vocabulary, rows without an entry, and values that are no log-probabilities.
    """
    if np.isnan(logprobs_NK).any() or np.isposinf(logprobs_NK).any():
        raise UnsupportedInputError(
            "a log-probability is NaN or infinite, and only minus infinity stands for an entry that is left "
            "out; the capture is damaged"
        )
    real_NK = np.isfinite(logprobs_NK) & (logprobs_NK > LOWEST_LOGPROB)
    values_NK = np.where(real_NK, logprobs_NK, -np.inf).astype(np.float32)
    order_NK = np.argsort(-values_NK, axis=1, kind="stable")
    values_NK = np.take_along_axis(values_NK, order_NK, axis=1)
    count_N = real_NK.sum(axis=1).astype(np.int32)
    ids_NK = np.where(np.isfinite(values_NK), np.take_along_axis(ids_NK, order_NK, axis=1), 0)
    if len(ids_NK) and (int(ids_NK.max()) >= vocab_size or int(ids_NK.min()) < 0):
        raise UnsupportedInputError(
            f"ids up to {int(ids_NK.max())} do not fit a vocabulary of {vocab_size}; give the teacher's own "
            "with --vocab-size, or the configuration they were written with"
        )
    if len(count_N) and int(count_N.min()) == 0:
        raise UnsupportedInputError("a row has no entries; the capture is damaged")
    log_mass_N = np.logaddexp.reduce(values_NK.astype(np.float64), axis=1)
    if len(log_mass_N) and float(log_mass_N.max()) > np.log(MOST_MASS):
        raise UnsupportedInputError(
            f"the entries of a row have a mass of e^{log_mass_N.max():.1f}, and log-probabilities add up to "
            "at most 1; these are logits, or of another configuration"
        )
    logsumexp_N = np.maximum(log_mass_N, 0).astype(np.float32)
    with np.errstate(divide="ignore"):
        log_tail_N = np.log(np.maximum(-np.expm1(np.minimum(log_mass_N, 0)), 0)).astype(np.float32)
    logprob_N, rank_N = label_statistics(values_NK, ids_NK, logsumexp_N, label_N)
    return LabelRows(
        logits_NK=values_NK,
        token_ids_NK=ids_NK.astype(np.int32),
        count_N=count_N,
        logsumexp_NM=logsumexp_N[:, None],
        log_tail_mass_NM=log_tail_N[:, None],
        label_logprob_N=logprob_N,
        label_rank_N=rank_N,
    )
