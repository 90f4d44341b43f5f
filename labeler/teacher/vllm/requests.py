"""The requests that a prompt makes of a vLLM engine, and what becomes of their outputs.

Shape legend: T tokens, N label rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from labeler.config.loading import LabelsConfig, SamplingConfig
from labeler.errors import PromptError
from labeler.records import TokenizedPrompt
from labeler.teacher.label_rows import (
    CapturedColumns,
    ColumnLayout,
    check_given_ids,
    concatenate,
    fit_in_halves,
    rows_from_columns,
    rows_from_logprobs,
)
from labeler.teacher.protocol import check_given, check_prompt, labeled_sequence, sample_seed
from labeler.teacher.vllm.capture.given_arguments import given_arguments
from logitstore.errors import InvalidLabelsError
from logitstore.records import LabeledSequence, LabelRows

MOST_FAILURES = 3
"""Times that a request is made once more which the engine failed at by its own fault."""


@dataclass(slots=True)
class Work:
    """One request on its way through the engine."""

    prompt: TokenizedPrompt
    sample_index: int
    tokens_T: np.ndarray
    """int32, what the engine is given."""
    stage: Literal["score", "decode"]
    finish_reason: str = "scored"
    num_stop_tokens: int = 0
    """Tokens at the end that hold the stop text, which is not to be learnt."""
    num_failures: int = 0
    """Times the engine failed at it by no fault of the request's."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a started engine takes."""

    vocab_size: int
    max_tokens: int
    """Most tokens of prompt plus response; the engine always samples one more than it scores."""
    step_tokens: int
    """Tokens of one step."""
    max_requests: int
    """Requests worth handing over at a time."""
    max_logprobs: int
    """Most entries of a row that it was started for."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests for labels of one kind, to one engine."""

    labels: LabelsConfig
    sampling: SamplingConfig
    layout: ColumnLayout | None
    """None where the labels come through the public API."""
    limits: EngineLimits
    end_ids: tuple[int, ...]
    """Ids that end a response."""
    keeps_arrays: bool
    """Whether rows stay arrays in vLLM's front end."""
    decode: Callable[[list[int]], str] | None = None
    """Ids to text, where there are stop texts to find."""
    value_kind: Literal["logit_f16", "gap_f16"] = "gap_f16"
    """How a store holds the logits: as they are, or as their distance to the top one."""

    @property
    def num_logprobs(self) -> int:
        """Entries to ask the engine for."""
        return self.labels.top_k if self.layout is None else self.layout.num_logprobs

    @property
    def exact_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the rows' masses are exact."""
        return (1.0,) if self.layout is None else self.labels.temperatures

    @property
    def labels_at_decode(self) -> bool:
        if self.sampling.stop and not self.keeps_arrays:
            # To find stop strings vLLM turns every id in its own lists into text; sentinels have none.
            return False
        return self.labels.label_at != "rescore"

    def refused(self, prompt: TokenizedPrompt) -> PromptError | None:
        """Why the prompt cannot be labeled, or None."""
        # A response needs room for one token.
        limit = self.limits.max_tokens - 1 if self.labels.mode == "generate" else self.limits.max_tokens
        vocab_size = self.limits.vocab_size
        return check_prompt(prompt, vocab_size, limit, self.labels.mode) or check_given(
            prompt, vocab_size, self.labels
        )

    def works_of(self, prompt: TokenizedPrompt) -> list[Work]:
        """The requests that a prompt makes."""
        tokens_T = prompt.token_ids
        if prompt.response_token_ids is None:
            return [Work(prompt, index, tokens_T, "decode") for index in range(self.sampling.n)]
        return [Work(prompt, 0, tokens_T, "score")]

    def parameters(self, work: Work) -> Any:
        """vLLM's parameters of a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"output_kind": RequestOutputKind.FINAL_ONLY, "flat_logprobs": True, "skip_clone": True}
        if work.stage == "score":
            # prompt_logprobs must be given to the constructor: it switches the prefix cache off there.
            return SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                prompt_logprobs=self.num_logprobs,
                extra_args=given_arguments(work.prompt),
                **common,
            )
        sampling = self.sampling
        seed = sample_seed(sampling.seed, work.prompt.record_id, work.sample_index)
        at_decode = self.labels_at_decode
        prompt_rows = at_decode and work.prompt.label_start < len(work.tokens_T)
        max_tokens = min(sampling.max_tokens, self.limits.max_tokens - len(work.tokens_T))
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            seed=seed if sampling.temperature else None,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(dict.fromkeys([*self.end_ids, *sampling.stop_token_ids])),
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            logprobs=self.num_logprobs if at_decode else None,
            prompt_logprobs=self.num_logprobs if prompt_rows else None,
            **common,
        )

    def result(self, work: Work, output: Any) -> LabeledSequence | PromptError | Work:
        """What a finished request gives: a sequence, the reason why not, or a response to score."""
        completion = output.outputs[0]
        if completion.finish_reason == "error":
            error = getattr(output, "error", None)
            return again(work, error.message if error is not None else "it does not say why")
        if completion.finish_reason not in ("stop", "length"):
            reason = f"the engine ended it with {completion.finish_reason!r}; look at the engine's log"
            return request_error(work, reason, "bad_prompt")
        tokens_T, finish_reason, num_stop_tokens = work.tokens_T, work.finish_reason, work.num_stop_tokens
        if work.stage == "decode":
            tokens_T = np.concatenate([tokens_T, np.asarray(completion.token_ids, np.int32)])
            finish_reason = completion.finish_reason
            num_stop_tokens = self._num_stop_tokens(completion)
            if not self.labels_at_decode:
                return Work(work.prompt, work.sample_index, tokens_T, "score", finish_reason, num_stop_tokens)
        try:
            rows = self._rows(work, output, tokens_T)
        except InvalidLabelsError as error:
            return request_error(work, str(error), "bad_labels")
        return labeled_sequence(
            work.prompt,
            tokens_T,
            rows,
            sample_index=work.sample_index,
            finish_reason=finish_reason,
            num_masked_at_end=num_stop_tokens,
        )

    def _num_stop_tokens(self, completion: Any) -> int:
        """Tokens at the end of a response that hold the stop text it ended with, unless that is learnt."""
        text = completion.stop_reason
        if not isinstance(text, str) or self.sampling.stop_text == "learn" or self.decode is None:
            return 0
        ids = list(completion.token_ids)
        return next((n for n in range(1, len(ids)) if text in self.decode(ids[-n:])), len(ids))

    def _rows(self, work: Work, output: Any, tokens_T: np.ndarray) -> LabelRows:
        """Rows of positions `label_start`.. of a finished sequence."""
        from labeler.teacher.vllm.outputs import columns_of

        width = self.num_logprobs + 1
        given, start = len(work.tokens_T), work.prompt.label_start
        parts: list[CapturedColumns] = []
        if start < given:
            if output.num_cached_tokens:
                raise InvalidLabelsError(
                    f"{output.num_cached_tokens} positions came from the prefix cache, which keeps no "
                    "logits; set enable_prefix_caching = false in engine_args"
                )
            prompt_rows = columns_of(output.prompt_logprobs, width)
            _require_rows(prompt_rows, given - 1)
            parts.append(prompt_rows.slice(start - 1, given - 1))
        if work.stage == "decode":
            response_rows = columns_of(output.outputs[0].logprobs, width)
            _require_rows(response_rows, len(tokens_T) - given)
            parts.append(response_rows)
        captured = concatenate(parts)
        if not np.array_equal(captured.token_ids_NC[:, 0], tokens_T[len(tokens_T) - captured.num_rows :]):
            raise InvalidLabelsError("the engine's rows are not those of the sequence's tokens")
        if work.prompt.given_ids_NK is not None:
            check_given_ids(captured, work.prompt.given_ids_NK)
        if self.layout is None:
            return rows_from_logprobs(captured, self.labels.top_k, self.limits.vocab_size)
        rows = rows_from_columns(captured, self.layout, self.limits.vocab_size)
        return fit_in_halves(rows) if self.value_kind == "logit_f16" else rows


def again(work: Work, reason: str) -> Work | PromptError:
    """A request that the engine itself failed at, to be made once more; after MOST_FAILURES an error."""
    if work.num_failures < MOST_FAILURES:
        return replace(work, num_failures=work.num_failures + 1)
    reason = f"the engine failed at it {MOST_FAILURES + 1} times ({reason}); look at the engine's log"
    return request_error(work, reason, "engine_error")


def request_error(work: Work, reason: str, kind: str) -> PromptError:
    """What a request that gave no labels becomes."""
    return PromptError(work.prompt.record_id, reason, kind, work.sample_index)


def _require_rows(captured: CapturedColumns, expected: int) -> None:
    if captured.num_rows != expected:
        raise InvalidLabelsError(
            f"the engine returned {captured.num_rows} label rows where {expected} positions were asked for; "
            "report the engine's version and arguments"
        )
