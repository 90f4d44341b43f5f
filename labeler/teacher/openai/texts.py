"""What a server's model writes, as text: for servers that say nothing of token ids or log-probabilities.

The text is kept in the tokens of the tokenizer that the job names, which is the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeler.config.loading import SamplingConfig, TeacherConfig
from labeler.errors import ChatTemplateError, PromptError
from labeler.prompting.rendering import continuation
from labeler.prompting.tokenization import Conversation, Tokenizer
from labeler.records import TokenizedPrompt
from labeler.teacher.openai.calls import Caller, MalformedAnswerError, RefusedError
from labeler.teacher.protocol import labeled_sequence, sample_seed
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import THINK, THINK_END, PromptParser
from logitstore.records import LabeledSequence
from logitstore.rows.silent_rows import no_rows

PROBE_TEXT = "Say yes."
TRIAL_TOKENS = 16
"""Most tokens of a trial's answer; models that reason first refuse to write fewer."""
NEWER_LIMIT = "max_completion_tokens"
"""What some servers call `max_tokens`, which their newer models do not take."""
OFF_BY_DEFAULT: Mapping[str, float] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings of sampling that are no part of OpenAI's API and are sent only where they do something."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says that its model wrote."""

    text: str
    reasoning: str
    """What it gives apart from the text; "" where it gives none."""
    finish_reason: str


class TextTeacher:
    """Asks for one response at a time, from any thread."""

    def __init__(
        self,
        caller: Caller,
        served: str,
        teacher_config: TeacherConfig,
        sampling_config: SamplingConfig,
        tokenizer: Tokenizer,
    ) -> None:
        """Raises UnsupportedInputError where messages cannot be told apart by the chat template."""
        self._caller = caller
        self._served = served
        self._sampling = sampling_config
        self._where = f"the server at {teacher_config.api.base_url}"
        self._tokenizer = tokenizer
        self._limit = "max_tokens"
        self._parser = PromptParser(self._rendered) if teacher_config.api.endpoint == "chat" else None
        ends = tokenizer.ends.tokens
        of_template = [end for end in ends if "chat template" in end.named_by]
        self._end_ids = [end.token_id for end in (of_template or ends)[:1]]

    def self_test(self) -> None:
        """Raises RuntimeError, ServerFailedError: the server gives no texts."""
        try:
            self._caller.complete(self.trial(), TRIAL_TOKENS, _read_text)
        except RefusedError as error:
            if NEWER_LIMIT in error.reason and self._limit != NEWER_LIMIT:
                self._limit = NEWER_LIMIT
                self.self_test()
                return
            raise RuntimeError(f"{self._where} writes no text: {error.reason}") from None

    def trial(self) -> dict[str, Any]:
        """A request that every server of texts answers."""
        place: dict[str, Any] = {"messages": [{"role": "user", "content": PROBE_TEXT}]}
        if self._parser is None:
            place = {"prompt": PROBE_TEXT}
        return {"model": self._served, **place, self._limit: TRIAL_TOKENS}

    def written(self, prompt: TokenizedPrompt, sample_index: int) -> LabeledSequence | PromptError:
        """What the model answers, without label rows."""
        given = prompt.prompt_token_ids.tolist()
        text = self._tokenizer.decode(given)
        # The server puts the beginning before a text itself, as the tokenizer does.
        bos = list(self._tokenizer.bos_ids)
        begins = bool(bos) and given[: len(bos)] == bos
        place: dict[str, Any] = {"prompt": self._tokenizer.decode(given[len(bos) :]) if begins else text}
        if self._parser is not None:
            messages = self._parser.messages(text)
            if messages is None:
                reason = (
                    "its messages cannot be told apart in the prompt that the chat template makes of them "
                    '(tools, say); leave it out, or set teacher.api.endpoint = "completions"'
                )
                return PromptError(prompt.record_id, reason, "bad_prompt", sample_index)
            place = {"messages": messages}
        request = {"model": self._served, **place, **self._settings(prompt, sample_index)}
        num_tokens = len(prompt.prompt_token_ids) + self._sampling.max_tokens
        try:
            answer = self._caller.complete(request, num_tokens, _read_text)
        except RefusedError as error:
            return PromptError(prompt.record_id, error.reason, error.kind, sample_index)
        response = answer.text if self._parser is None else response_text(text, answer)
        response_ids = continuation(self._tokenizer, response)
        if answer.finish_reason == "stop":
            response_ids += self._end_ids
        ids_T = np.concatenate([prompt.prompt_token_ids, response_ids]).astype(np.int32)
        return labeled_sequence(
            prompt, ids_T, no_rows(1), sample_index=sample_index, finish_reason=answer.finish_reason
        )

    def _settings(self, prompt: TokenizedPrompt, sample_index: int) -> dict[str, Any]:
        sampling = self._sampling
        extra = {name: getattr(sampling, name) for name in OFF_BY_DEFAULT}
        return {
            self._limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": sample_seed(sampling.seed, prompt.record_id, sample_index),
            "extra_body": {name: value for name, value in extra.items() if value != OFF_BY_DEFAULT[name]},
        }

    def _rendered(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        conversation = Conversation(tuple(messages))
        try:
            return self._tokenizer.render_chat(conversation, add_generation_prompt=add_generation_prompt)
        except ChatTemplateError as error:
            raise UnsupportedInputError(str(error)) from None


def response_text(prompt: str, answer: Answer) -> str:
    """The response as it follows the prompt, its reasoning between `<think>` and `</think>`.

    What the prompt opened is not opened again, and is closed before an answer without reasoning. Reasoning
    that was cut off before any answer stays open, as the model left it.
    """
    opened, text = prompt.rstrip().endswith(THINK), answer.text
    if text.lstrip().startswith(THINK):
        return text.lstrip().removeprefix(THINK).lstrip("\n") if opened else text
    if not answer.reasoning:
        return f"\n{THINK_END}\n\n{text}" if opened and THINK_END not in text else text
    reasoning = answer.reasoning.strip("\n").removeprefix(THINK).removesuffix(THINK_END).strip("\n")
    begun = reasoning if opened else f"{THINK}\n{reasoning}"
    if answer.finish_reason == "length" and not text.strip():
        return begun
    return f"{begun}\n{THINK_END}\n\n{text}"


def _read_text(answer: Any) -> Answer:
    """The one completion, or message, of an answer. A message without content is one without text.

    Raises MalformedAnswerError, and RefusedError where the server's filter cut it off.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        raise MalformedAnswerError("the answer has not exactly one choice")
    choice = choices[0]
    if choice.finish_reason == "content_filter":
        raise RefusedError("the server's filter cut the response off", "content_filter")
    if choice.finish_reason not in ("stop", "length"):
        raise MalformedAnswerError(f"the answer ended with {choice.finish_reason!r}")
    message = getattr(choice, "message", None)
    if message is None:
        if not isinstance(choice.text, str):
            raise MalformedAnswerError("the answer has no text")
        return Answer(choice.text, "", choice.finish_reason)
    if refusal := getattr(message, "refusal", None):
        raise RefusedError(f"the model refuses: {refusal!r:.120}", "content_filter")
    apart = message.model_extra or {}
    reasoning = apart.get("reasoning_content") or apart.get("reasoning") or ""
    text = message.content if message.content is not None else ""
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise MalformedAnswerError("the answer has a content or a reasoning that is no text")
    return Answer(text, reasoning, choice.finish_reason)
