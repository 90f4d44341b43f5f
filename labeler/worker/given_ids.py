"""The ids at which the rows of a unit are wanted, from the store that `labels.given` names.

A row is made where that store has one that counts, at the ids that stand there.

Shape legend: T tokens, N label rows, K ids of a row.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from labeler.config.loading import JobConfig
from labeler.errors import PromptError
from labeler.planning.given_store import open_planned
from labeler.records import TokenizedPrompt
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence

KIND = "no_given_ids"
"""Kind of the rejects that have no ids."""


class GivenIds:
    """Looks records up in the store, for one thread of a worker at a time."""

    def __init__(self, job: JobConfig, objects: Objects) -> None:
        """`objects` hold the job's plan. Raises as `open_planned`."""
        self._store = open_planned(job, objects)
        self._top_k = job.labels.top_k
        self._lock = threading.Lock()

    def of(self, prompts: list[TokenizedPrompt]) -> tuple[list[TokenizedPrompt], list[PromptError]]:
        """The prompts with their ids, and why others have none."""
        with self._lock:
            found = self._store.find(prompt.record_id for prompt in prompts)
        ready: list[TokenizedPrompt] = []
        errors: list[PromptError] = []
        for prompt in prompts:
            with_ids = self._with_ids(prompt, found[prompt.record_id])
            (errors if isinstance(with_ids, PromptError) else ready).append(with_ids)  # type: ignore[arg-type]
        return ready, errors

    def _with_ids(
        self, prompt: TokenizedPrompt, samples: list[LabeledSequence]
    ) -> TokenizedPrompt | PromptError:
        where, name = self._store.uri, prompt.record_id
        tokens_T = prompt.token_ids
        if not samples:
            return PromptError(name, f"it is not in {where}, which has the ids; label it there first", KIND)
        same = [one for one in samples if np.array_equal(one.token_ids_T, tokens_T)]
        if not same:
            return PromptError(
                name,
                f"it has other tokens in {where}, which has the ids; score the tokens of that store",
                KIND,
            )
        given = same[0]
        start = max(prompt.label_start, given.label_start)
        if given.label_start + given.rows.num_rows < len(tokens_T) or start >= len(tokens_T):
            return PromptError(
                name,
                f"{where}, which has the ids, has no rows up to its last token; label it there anew",
                KIND,
            )
        # A row behind the last token is of a token that no score reaches.
        span = slice(start - given.label_start, len(tokens_T) - given.label_start)
        rows = given.rows.slice(span.start, span.stop)
        ids_NK = np.full((rows.num_rows, self._top_k), -1, np.int32)
        width = min(self._top_k, rows.token_ids_NK.shape[1])
        real_NK = np.arange(width) < rows.count_N[:, None]
        ids_NK[:, :width] = np.where(real_NK, rows.token_ids_NK[:, :width], -1)
        mask_T = np.ones(len(tokens_T), bool) if prompt.loss_mask_T is None else prompt.loss_mask_T.copy()
        mask_T[start:] &= given.loss_mask_N[span]
        return replace(prompt, label_start=start, loss_mask_T=mask_T, given_ids_NK=ids_NK)
