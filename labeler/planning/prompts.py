"""Records to token ids: what the teacher sees of an input record, or why it sees nothing.

In mode "score" labels start exactly at the first token of the response: prompt and response are tokenised
as a whole and must begin with the prompt's own ids; where a merge crosses the border, the two parts are
tokenised apart, as they would be when the response is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labeler.config.loading import InputConfig, JobConfig
from labeler.planning.tokenization import ChatTemplateError, Message, Tokenizer
from labeler.teacher.protocol import PromptError, TokenizedPrompt, check_prompt

MAX_TOKEN_ID = 2**31 - 1


class BadRecordError(ValueError):
    """A record that cannot be labeled; the message holds the value, the rule and the remedy."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


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
        self._tokenizer = tokenizer
        self._limits = limits

    def build(self, record_id: str, record: dict[str, Any]) -> TokenizedPrompt:
        """The record's ids. Raises BadRecordError."""
        prompt_ids, response_ids = self._tokenise(record)
        if self._mode == "generate":
            response_ids = None
        label_start = 1 if self._label_all else max(len(prompt_ids), 1)
        prompt = TokenizedPrompt(
            record_id=record_id,
            prompt_token_ids=np.asarray(prompt_ids, dtype=np.int32),
            response_token_ids=None if response_ids is None else np.asarray(response_ids, dtype=np.int32),
            label_start=label_start,
        )
        max_tokens = self._limits.max_model_len - (1 if self._mode == "generate" else 0)
        error = check_prompt(prompt, self._limits.vocab_size, max_tokens, self._mode)
        if error is not None:
            raise bad_record(error)
        return prompt

    def _tokenise(self, record: dict[str, Any]) -> tuple[list[int], list[int] | None]:
        kind = self._input.kind
        if kind == "token_ids":
            return self._given_ids(record)
        if kind == "text":
            text = _text(record, self._input.field_names()["text"])
            return [], self._tokenizer.encode(text, add_special_tokens=True)
        messages, response = self._conversation(record)
        if self._input.chat_template:
            return self._with_template(messages, response)
        prompt_text = "".join(message["content"] for message in messages)
        return self._as_a_whole(prompt_text, response, add_special_tokens=True)

    def _given_ids(self, record: dict[str, Any]) -> tuple[list[int], list[int] | None]:
        """`token_ids` alone is scored as a whole; before `response_token_ids`, or to be answered, it is
        the prompt."""
        names = self._input.field_names()
        ids = _token_ids(record, names["token_ids"])
        if "response_token_ids" in names:
            return ids, _token_ids(record, names["response_token_ids"])
        return (ids, None) if self._mode == "generate" else ([], ids)

    def _conversation(self, record: dict[str, Any]) -> tuple[list[Message], str | None]:
        """Messages before the response, and the response where the record has one."""
        names = self._input.field_names()
        response: str | None = None
        if self._input.kind == "messages":
            messages = _messages(record, names["messages"])
            if messages[-1]["role"] == "assistant":
                response = messages.pop()["content"]
            if not messages:
                raise BadRecordError(
                    f"field {names['messages']!r} holds only an answer; put the question before it", "empty"
                )
        else:
            messages = [{"role": "user", "content": _text(record, names["prompt"])}]
            if self._input.kind == "prompt_response" and self._mode == "score":
                response = _text(record, names["response"])
        if self._input.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._input.system_prompt})
        if self._mode == "score" and response is None:
            raise BadRecordError(
                f"field {names['messages']!r} ends with a message of {messages[-1]['role']!r}; to be scored "
                "it must end with one of 'assistant'",
                "no_response",
            )
        return list(messages), response

    def _with_template(
        self, messages: Sequence[Message], response: str | None
    ) -> tuple[list[int], list[int] | None]:
        try:
            prompt_text = self._tokenizer.render_chat(messages, add_generation_prompt=True)
            if self._mode == "generate" or response is None:
                return self._tokenizer.encode(prompt_text, add_special_tokens=False), None
            answer: Message = {"role": "assistant", "content": response}
            whole_text = self._tokenizer.render_chat([*messages, answer], add_generation_prompt=False)
        except ChatTemplateError as error:
            raise BadRecordError(f"{error}; correct the messages' roles and order", "bad_prompt") from None
        if not whole_text.startswith(prompt_text):
            raise BadRecordError(
                "the chat template renders the conversation differently with its answer than without, so the "
                "answer's first token cannot be told; give token_ids, or set input.chat_template = false",
                "bad_prompt",
            )
        prompt_ids, response_ids = self._as_a_whole(
            prompt_text, whole_text[len(prompt_text) :], add_special_tokens=False
        )
        assert response_ids is not None
        return prompt_ids, self._without_trailing_space(response_ids)

    def _as_a_whole(
        self, prompt_text: str, response_text: str | None, *, add_special_tokens: bool
    ) -> tuple[list[int], list[int] | None]:
        prompt_ids = self._tokenizer.encode(prompt_text, add_special_tokens=add_special_tokens)
        if response_text is None:
            return prompt_ids, None
        whole_ids = self._tokenizer.encode(prompt_text + response_text, add_special_tokens=add_special_tokens)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, whole_ids[len(prompt_ids) :]
        return prompt_ids, self._tokenizer.encode(response_text, add_special_tokens=False)

    def _without_trailing_space(self, response_ids: list[int]) -> list[int]:
        """Up to the end-of-turn token: the white space that templates put after it is never generated."""
        special_ids = self._tokenizer.special_ids
        last = next((i for i in reversed(range(len(response_ids))) if response_ids[i] in special_ids), None)
        if last is None or self._tokenizer.decode(response_ids[last + 1 :]).strip():
            return response_ids
        return response_ids[: last + 1]


def bad_record(error: PromptError) -> BadRecordError:
    return BadRecordError(error.reason, error.kind)


def field_value(record: dict[str, Any], name: str) -> Any:
    """The field of that name; dots reach into nested objects. Raises BadRecordError."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            present = ", ".join(sorted(str(key) for key in record)[:8]) or "nothing"
            raise BadRecordError(
                f"field {name!r} is missing, the record has {present}; correct the record or input.fields",
                "missing_field",
            )
        value = value[part]
    return value


def _text(record: dict[str, Any], name: str) -> str:
    """A text field; of a list of strings (the turns of a conversation) the first."""
    value = field_value(record, name)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = value[0]
    if not isinstance(value, str):
        raise BadRecordError(
            f"field {name!r} is {_shown(value)}, it must be text or a list of texts; correct the record or "
            "input.fields",
            "bad_type",
        )
    if not value.strip():
        raise BadRecordError(f"field {name!r} is empty; give it text or leave the record out", "empty")
    return value


def _messages(record: dict[str, Any], name: str) -> list[Message]:
    value = field_value(record, name)
    if not isinstance(value, list):
        raise BadRecordError(
            f"field {name!r} is {_shown(value)}, it must be a list of messages; correct input.fields",
            "bad_type",
        )
    if not value:
        raise BadRecordError(f"field {name!r} is empty; give it a message", "empty")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise BadRecordError(
                f'field {name!r} holds {_shown(message)}; a message is {{"role": text, "content": text}}',
                "bad_type",
            )
        messages.append({"role": message["role"], "content": message["content"]})
    if not messages[-1]["content"].strip():
        raise BadRecordError(f"the last message of field {name!r} is empty; give it text", "empty")
    return messages


def _token_ids(record: dict[str, Any], name: str) -> list[int]:
    value = field_value(record, name)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise BadRecordError(
            f"field {name!r} is {_shown(value)}, it must be a list of whole numbers; correct the record",
            "bad_type",
        )
    if not value:
        raise BadRecordError(f"field {name!r} is empty; give it token ids", "empty")
    for token_id in value:
        if not 0 <= token_id <= MAX_TOKEN_ID:
            raise BadRecordError(
                f"field {name!r} holds the token id {token_id}, which no vocabulary has; tokenise with the "
                "teacher's tokenizer",
                "bad_token_id",
            )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
