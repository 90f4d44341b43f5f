"""The chat template on messages of plain text: which tokens are the answer, and that nothing was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from logitstore.common.terminal import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls")
"""Keys of a message that hold what its author said."""
OTHER_CONTENT = "penumbra other content"


def template_errors() -> tuple[type[Exception], ...]:
    """What rendering raises where a template refuses messages, or takes for text what is none."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, KeyError, AttributeError)


class TemplateRefusesError(ValueError):
    """The template cannot write these messages, or not all that they say."""


class TextTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._read: set[tuple[str, str]] = set()
        """(role, key) that the template is known to read."""

    def tokens(self, messages: Sequence[Any], tools: Any) -> tuple[list[int], int]:
        """(token ids, how many of them are before the last message). Raises TemplateRefusesError."""
        for place, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TemplateRefusesError(
                    f"message {place + 1} is {str(message)[:60]!r}, and must be an object with a role; "
                    "correct the record"
                )
        whole = self._ids(messages, tools)
        self._check_read(messages, tools, whole)
        begun = self._ids(messages[:-1], tools, begins_answer=True)
        if whole[: len(begun)] != begun:
            raise TemplateRefusesError(
                "the chat template writes the beginning of the conversation otherwise once the answer is "
                "there, so its tokens cannot be told apart; use kind = 'text' with it written out"
            )
        return whole, len(begun)

    def _ids(self, messages: Sequence[Any], tools: Any, *, begins_answer: bool = False) -> list[int]:
        try:
            found: Any = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                add_generation_prompt=begins_answer,
                tokenize=True,
                return_dict=False,
            )
        except template_errors() as error:
            raise TemplateRefusesError(
                f"the chat template refuses the messages ({first_line(error)}); correct the record, or use "
                "kind = 'text' with it written out"
            ) from error
        return list(found)

    def _check_read(self, messages: Sequence[Mapping[str, Any]], tools: Any, whole: Sequence[int]) -> None:
        """Raises TemplateRefusesError for what is said and makes no difference to the text."""
        for place, message in enumerate(messages):
            for key in SAID:
                known = (message["role"], key)
                if not message.get(key) or known in self._read:
                    continue
                other = {**message, key: OTHER_CONTENT} if key == "content" else _without(message, key)
                if not self._differs([*messages[:place], other, *messages[place + 1 :]], tools, whole):
                    raise TemplateRefusesError(
                        f"the chat template does not read {key!r} of message {place + 1}, of "
                        f"{message['role']!r}, so it would be lost; leave it out of the record, or use "
                        "kind = 'text' with it written out"
                    )
                self._read.add(known)
        if tools and not self._differs(messages, None, whole):
            raise TemplateRefusesError(
                "the chat template does not read the record's tools; leave them out of the record, or use "
                "kind = 'text' with them written out"
            )

    def _differs(self, messages: Sequence[Mapping[str, Any]], tools: Any, whole: Sequence[int]) -> bool:
        try:
            return self._ids(messages, tools) != whole
        except TemplateRefusesError:  # it reads what is missing now
            return True


def _without(message: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}
