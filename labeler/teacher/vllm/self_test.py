"""A started engine's labels of a fixed prompt, and whether its numbers fit together.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labeler.config.loading import LabelsConfig
from labeler.records import TokenizedPrompt
from labeler.teacher.vllm.requests import EngineLimits, Work
from logitstore.records import LabelRows

SELF_TEST_TOKENS = 16
MASS_TOLERANCE = 1e-4
"""How far head and tail may miss the whole, in nats."""


def self_test_work(labels: LabelsConfig, limits: EngineLimits) -> Work:
    """The request to score ids that are spread over the vocabulary."""
    ids_T = np.linspace(0, limits.vocab_size - 1, SELF_TEST_TOKENS, dtype=np.int32)
    ids_T = ids_T[: limits.max_tokens]
    given_NK = self_test_ids(labels, len(ids_T) - 1, limits.vocab_size)
    prompt = TokenizedPrompt("self-test", ids_T[:0], ids_T, 1, given_ids_NK=given_NK)
    return Work(prompt, 0, ids_T, "score")


def mass_fault(rows: LabelRows, temperatures: Sequence[float]) -> str | None:
    """Where head and tail miss the whole, in words, or None."""
    for index, temperature in enumerate(temperatures):
        head_N = np.logaddexp.reduce(rows.logits_NK / temperature, axis=1)
        tail_N = rows.log_tail_mass_NM[:, index] + rows.logsumexp_NM[:, index]
        miss = np.abs(np.logaddexp(head_N, tail_N) - rows.logsumexp_NM[:, index]).max()
        if not miss < MASS_TOLERANCE:
            return f"head and tail miss the whole by {miss:.2g} nats at T={temperature} in the self-test"
    return None


def self_test_ids(labels: LabelsConfig, num_rows: int, vocab_size: int) -> np.ndarray | None:
    """int32 [N, K]: ids spread over the vocabulary, others in every row; None where a job gives none."""
    if not labels.given:
        return None
    even_K = np.linspace(0, vocab_size - 1, labels.top_k).astype(np.int64)
    return ((even_K + np.arange(num_rows)[:, None]) % vocab_size).astype(np.int32)
