"""The records handed from stage to stage: what a teacher gives, a store keeps and a trainer gets.

Shape legend: T tokens of one sequence, N label rows, K stored entries per row, M temperatures.
All logarithms are natural; probabilities are over the teacher's whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np


class Segment(IntEnum):
    """What a token is within its sequence; the number is the one stored."""

    CONTEXT = 0
    """Given to the assistant: prompts, tools' answers, the template's markers, turns that are not labeled."""
    REASONING = 1
    """The assistant's thinking, its markers included."""
    ANSWER = 2
    """What the assistant says; all of a plain text."""
    TOOL = 3
    """The assistant's call of a tool, its markers included."""
    END = 4
    """The marker with which the assistant ends its turn."""

    @property
    def label(self) -> str:
        """The name in settings, selections and pages."""
        return self.name.lower()


SEGMENT_NAMES: tuple[str, ...] = tuple(segment.label for segment in Segment)
"""By number."""

UNKNOWN_RANK = 0
"""Value of `label_rank_N` where the rank of the actual token is not known."""


@dataclass(frozen=True, slots=True)
class LabelRows:
    """The teacher's distribution for N consecutive positions.

    Within a row entries descend by logit; of the K columns the first `count_N[i]` are real and the
    rest are padding (id 0, logit -inf) that means nothing. Ids of a row are distinct.

    Masses are exact at every temperature of the store: with `l` the raw logits over all V ids and S
    the `count_N[i]` stored ids, `logsumexp_NM` is `logsumexp(l / T)` and `log_tail_mass_NM` is
    `log(sum over v not in S of exp(l_v / T)) - logsumexp(l / T)`, which is -inf when S is everything.
    """

    logits_NK: np.ndarray
    """float32, raw teacher logits, descending, -inf beyond `count_N`."""
    token_ids_NK: np.ndarray
    """int32, vocabulary ids of the logits, 0 beyond `count_N`."""
    count_N: np.ndarray
    """int32, real entries of each row, 1..K."""
    logsumexp_NM: np.ndarray
    """float32, by temperature, in the order of the manifest's `temperatures` (the first is 1.0)."""
    log_tail_mass_NM: np.ndarray
    """float32, at most 0, by temperature; -inf where no mass lies outside the stored entries."""
    label_logprob_N: np.ndarray
    """float32, log-probability at T=1 of the token that stands at the row's position; NaN if unknown."""
    label_rank_N: np.ndarray
    """int32, number of ids with a logit of at least the actual token's (1 = top); 0 if unknown."""

    @property
    def num_rows(self) -> int:
        return self.token_ids_NK.shape[0]

    def slice(self, start: int, stop: int) -> LabelRows:
        """A view of the rows [start, stop)."""
        return LabelRows(
            logits_NK=self.logits_NK[start:stop],
            token_ids_NK=self.token_ids_NK[start:stop],
            count_N=self.count_N[start:stop],
            logsumexp_NM=self.logsumexp_NM[start:stop],
            log_tail_mass_NM=self.log_tail_mass_NM[start:stop],
            label_logprob_N=self.label_logprob_N[start:stop],
            label_rank_N=self.label_rank_N[start:stop],
        )


@dataclass(frozen=True, slots=True)
class LabeledSequence:
    """One sequence with its label rows, label-aligned.

    Row i of `rows` is the teacher's distribution p(x_j | x_<j) of position j = `label_start` + i, the
    index of `labels[j]`. Position 0 has no row. The last row may stand at position T, one past the
    last token: the distribution of a token that is not part of the sequence.
    """

    record_id: str
    """Id of the input record."""
    sample_index: int
    """Which of a record's n generated samples this is; 0 when scoring."""
    token_ids_T: np.ndarray
    """int32, prompt and response."""
    prompt_length: int
    """Tokens at the start that are the prompt; 0 for plain text."""
    label_start: int
    """Position of the first label row, at least 1."""
    rows: LabelRows
    loss_mask_N: np.ndarray
    """bool, which rows a training loss counts."""
    finish_reason: str
    """"stop", "length" when generated; "scored" otherwise."""
    flags: tuple[str, ...] = ()
    """What a filter marked, for example "truncated", "repeated"; empty when nothing."""
    student_prompt_ids: np.ndarray | None = None
    """int32, at least one: the prompt of a student that shall answer so without seeing what the teacher saw.
    It stands in place of the first `prompt_length` tokens, and no label row lies there. None: the same."""
    segments_T: np.ndarray | None = None
    """uint8, the `Segment` of each token; the prompt's are all CONTEXT. None: not known."""

    def for_student(self) -> LabeledSequence:
        """The sequence as its student sees it: its own prompt, the same response, the rows moved with it."""
        if self.student_prompt_ids is None:
            return self
        prompt, segments_T = self.student_prompt_ids, self.segments_T
        if segments_T is not None:
            context = np.full(len(prompt), Segment.CONTEXT, np.uint8)
            segments_T = np.concatenate([context, segments_T[self.prompt_length :]])
        return replace(
            self,
            token_ids_T=np.concatenate([prompt, self.token_ids_T[self.prompt_length :]]),
            prompt_length=len(prompt),
            label_start=self.label_start + len(prompt) - self.prompt_length,
            student_prompt_ids=None,
            segments_T=segments_T,
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """An input record that got no labels, and why."""

    file: str
    """Input file, relative to the input as given."""
    line: int
    """1-based line (JSONL) or row (Parquet, Arrow)."""
    record_id: str | None
    """None where the record was too broken to have one."""
    reason: str
    """A sentence: the value found, the rule, the remedy."""
    kind: str
    """A stable word to count by, for example "invalid_json", "too_long", "duplicate_id", "killed_engine"."""
