"""Records to token ids: what the teacher sees of an input record, or why it sees nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labeler.config.loading import InputConfig, JobConfig
from labeler.errors import BadRecordError, PromptError
from labeler.prompting.conversations import exchange_of, student_exchange, text_field
from labeler.prompting.exchange_ids import ExchangeIds
from labeler.prompting.given_tokens import (
    given_mask,
    given_segments,
    given_token_ids,
    mask_of_segments,
)
from labeler.prompting.rendering import with_bos
from labeler.prompting.tokenization import Tokenizer
from labeler.records import TokenizedPrompt
from labeler.teacher.protocol import check_prompt
from logitstore.inputs.parts import LEARNING_KEYS, is_learned


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """What the teacher takes."""

    vocab_size: int
    """V, the width of the logits; every id must lie below it."""
    max_model_len: int
    """Most tokens of prompt plus response, generated ones included."""


class PromptBuilder:
    """Turns records of one job into prompts for its teacher."""

    def __init__(self, job: JobConfig, tokenizer: Tokenizer, limits: ContextLimits) -> None:
        self._input: InputConfig = job.input
        self._mode: Literal["score", "generate"] = job.labels.mode
        self._label_all = job.positions == "all"
        self._turns = job.labels.turns
        self._tokenizer = tokenizer
        self._limits = limits
        self.exchanges = ExchangeIds(job, tokenizer)

    def build(self, record_id: str, record: dict[str, Any]) -> TokenizedPrompt:
        """The record's ids. Raises BadRecordError."""
        try:
            return self._built(record_id, record)
        except RecursionError:
            reason = "its values, or JSON text in them, are nested too deeply to be read; make them flatter"
            raise BadRecordError(reason, "bad_type") from None

    def _built(self, record_id: str, record: dict[str, Any]) -> TokenizedPrompt:
        mask_T = None
        if self._turns == "all":
            prompt_ids, response_ids, mask_T = self.exchanges.all_turns(
                exchange_of(record, self._input, self._mode)
            )
        else:
            prompt_ids, response_ids = self._tokenise(record)
        if self._mode == "generate":
            response_ids = None
        with self.exchanges.uncounted():
            student_ids = (
                self._student_prompt(record, response_ids) if self._input.has_student_prompts else None
            )
        if student_ids is not None and self._input.prompt_seen == "student":
            prompt_ids, student_ids = student_ids.tolist(), np.asarray(prompt_ids, np.int32)
        if "loss_mask" in self._input.field_names():
            mask_T = given_mask(record, self._input.field_names()["loss_mask"], prompt_ids, response_ids)
        segments_T = None
        if "segments" in self._input.field_names():
            num_tokens = len(prompt_ids) + len(response_ids or ())
            segments_T = given_segments(record, self._input.field_names()["segments"], num_tokens)
            mask_T = mask_of_segments(segments_T, mask_T, len(prompt_ids))
        label_start = 1 if self._label_all else max(len(prompt_ids), 1)
        prompt = TokenizedPrompt(
            record_id=record_id,
            prompt_token_ids=np.asarray(prompt_ids, dtype=np.int32),
            response_token_ids=None if response_ids is None else np.asarray(response_ids, dtype=np.int32),
            label_start=label_start,
            loss_mask_T=mask_T,
            segments_T=segments_T,
            student_prompt_token_ids=student_ids,
        )
        max_tokens = self._limits.max_model_len - (1 if self._mode == "generate" else 0)
        error = check_prompt(prompt, self._limits.vocab_size, max_tokens, self._mode)
        if error is not None:
            raise bad_record(error)
        return prompt

    def _student_prompt(self, record: dict[str, Any], response_ids: list[int] | None) -> np.ndarray:
        """int32 [T], the ids that the student sees before the same response."""
        names = self._input.field_names()
        if self._input.kind == "token_ids":
            return np.asarray(given_token_ids(record, names["student_token_ids"]), np.int32)
        exchange = student_exchange(record, self._input, exchange_of(record, self._input, self._mode))
        if self._turns == "all":
            prompt_ids, same_ids, _ = self.exchanges.all_turns(exchange)
        else:
            prompt_ids, same_ids = self.exchanges.last_turn(exchange)
        if self._mode == "score" and same_ids != response_ids:
            raise BadRecordError(
                "the response has other token ids after the student's prompt than after the teacher's, so "
                "the teacher's rows are not the student's: give both a prompt that ends alike",
                "other_response",
            )
        if not prompt_ids:
            raise BadRecordError("the student's prompt has no token; give it one at least", "empty")
        return np.asarray(prompt_ids, np.int32)

    def _tokenise(self, record: dict[str, Any]) -> tuple[list[int], list[int] | None]:
        kind = self._input.kind
        if kind == "token_ids":
            return self._given_ids(record)
        if kind == "text":
            text = text_field(record, self._input.field_names()["text"], self._input.list_of_texts)
            return [], with_bos(self._tokenizer, self._tokenizer.encode(text))
        exchange = exchange_of(record, self._input, self._mode)
        is_given = self._mode == "score" or self._turns == "each"
        if is_given and exchange.response is not None and not is_learned(exchange.response):
            reason = (
                f"its last answer is not to be learned (weight 0, or another of {', '.join(LEARNING_KEYS)})"
            )
            raise BadRecordError(reason, "no_response")
        return self.exchanges.last_turn(exchange)

    def _given_ids(self, record: dict[str, Any]) -> tuple[list[int], list[int] | None]:
        """`token_ids` alone is scored as a whole; before `response_token_ids`, or to be answered, it is
        the prompt."""
        names = self._input.field_names()
        ids = given_token_ids(record, names["token_ids"])
        if "response_token_ids" in names:
            return ids, given_token_ids(record, names["response_token_ids"])
        return (ids, None) if self._mode == "generate" else ([], ids)


def bad_record(error: PromptError) -> BadRecordError:
    return BadRecordError(error.reason, error.kind)
