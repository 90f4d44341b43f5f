"""Whether label rows stand at their own tokens: shifted ones train a plausible but wrong student.

Shape legend: N label rows, K stored entries, O offsets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from logitstore.rows import temperature as temperatures
from trainer.data.samples import Sample
from trainer.errors import GuardError

OFFSETS: tuple[int, ...] = (-1, 0, 1)
ALIGNMENT_ROWS = 4096
"""Label rows that the alignment check looks at."""
ALIGNMENT_SEQUENCES = 64
"""Sequences of each store that it looks at, at most."""
EVIDENT_ERRORS = 4.0
"""Standard errors by which the mean at a neighbour must be better for rows to count as shifted."""
LEAST_SURPRISE = 0.5
"""Of the neighbour's gain, by which rows must be more surprised at their own place than they expect to be."""
LEAST_LOG_MASS = -30.0
"""Stands for an empty tail, so that one impossible token does not decide."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Mean negative log-likelihood, under the stored rows, of the token at each offset from the row's."""

    nll_by_offset: dict[int, float]
    num_rows: int


def check_alignment(samples: Iterable[Sample], *, where: str) -> Alignment:
    """Rows must not predict a neighbour of the token they stand at evidently better than this token.

    Raises GuardError if they do: then they are shifted against the tokens, which trains a plausible but
    wrong student. Of a few rows, or those of an untrained teacher, chance may favour a neighbour; one whose
    head is its embedding even echoes the token before. But rows at their own place are no more surprised by
    their tokens than they expect to be, and shifted ones are by most of what the neighbour gains.
    """
    nll_ON, expected_N, num_rows = [], [], 0
    for sample in samples:
        nlls_ON, expected = _nll_by_offset(sample)
        nll_ON.append(nlls_ON)
        expected_N.append(expected)
        num_rows += len(expected)
        if num_rows >= ALIGNMENT_ROWS:
            break
    if not num_rows:
        return Alignment(dict.fromkeys(OFFSETS, 0.0), 0)
    nll_by_offset = dict(zip(OFFSETS, np.concatenate(nll_ON, axis=1), strict=True))
    means = {offset: float(nll_N.mean()) for offset, nll_N in nll_by_offset.items()}
    best = min(means, key=lambda offset: means[offset])
    gain_N = nll_by_offset[0] - nll_by_offset[best]
    surprise = means[0] - float(np.concatenate(expected_N).mean())
    is_evident = gain_N.mean() > EVIDENT_ERRORS * gain_N.std() / num_rows**0.5
    if is_evident and surprise > LEAST_SURPRISE * gain_N.mean():
        raise GuardError(
            f"the label rows of {where} predict the token at offset {best:+d} best (mean negative log-"
            f"likelihood {means[best]:.2f} against {means[0]:.2f} at their own place, {num_rows} rows): they "
            "are shifted against the tokens. Label, or import, the data again"
        )
    return Alignment(means, num_rows)


def _nll_by_offset(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows that have a neighbour on both sides, negative log-likelihoods, float64 [O, N], and the one
    that each row expects of a token drawn from itself, float64 [N].

    A token that is not stored counts as if the mass of the tail lay evenly on all such tokens.
    """
    sequence = sample.sequence
    first = sequence.label_start
    count = max(0, min(sequence.rows.num_rows, len(sequence.token_ids_T) - 1 - first))
    rows = sequence.rows.slice(0, count)
    logprobs_NK = temperatures.logprobs(rows, sample.labels, 1.0)
    tail_N = temperatures.log_tail_mass(rows, sample.labels, 1.0)
    num_others_N = np.maximum(sample.labels.vocab_size - rows.count_N, 1)
    other_N = np.maximum(tail_N, LEAST_LOG_MASS) - np.log(num_others_N)
    real_NK = np.arange(logprobs_NK.shape[1]) < rows.count_N[:, None]
    nll_ON = np.empty((len(OFFSETS), count))
    for row, offset in enumerate(OFFSETS):
        tokens_N = sequence.token_ids_T[first + offset : first + offset + count]
        match_NK = (rows.token_ids_NK == tokens_N[:, None]) & real_NK
        found_N = np.where(match_NK, logprobs_NK, -np.inf).max(axis=1)
        nll_ON[row] = -np.where(match_NK.any(axis=1), found_N, other_N)
    finite_NK = np.where(real_NK, np.maximum(logprobs_NK, LEAST_LOG_MASS), LEAST_LOG_MASS)
    expected_N = -(np.exp(finite_NK) * finite_NK).sum(axis=1) - np.exp(tail_N) * other_N
    return nll_ON, expected_N
