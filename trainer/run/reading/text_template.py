"""The chat template on messages of plain text: which tokens are the answer, and that nothing was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from logitstore.inputs.chat_templates import REASONING_NAMES, template_errors, with_all_reasoning_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID = ("content", "tool_calls", *REASONING_NAMES)
"""Keys of a message that hold what its author said."""
OTHER_CONTENT = "penumbra other content"


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
        messages = [with_all_reasoning_names(message) for message in messages]
        whole = self._ids(messages, tools)
        self._check_read(messages, tools)
        begun = self._ids(messages[:-1], tools, begins_answer=True)
        if whole[: len(begun)] != begun:
            raise TemplateRefusesError(
                "the chat template writes the beginning of the conversation otherwise once the answer is "
                "there, so its tokens cannot be told apart; use kind = 'text' with it written out"
            )
        return whole, len(begun)

    def _ids(self, messages: Sequence[Any], tools: Any, *, begins_answer: bool = False) -> list[int]:
        return list(self._applied(messages, tools, begins_answer=begins_answer, tokenize=True))

    def _applied(self, messages: Sequence[Any], tools: Any, *, begins_answer: bool, tokenize: bool) -> Any:
        """Token ids or text."""
        from jinja2 import TemplateSyntaxError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                add_generation_prompt=begins_answer,
                tokenize=tokenize,
                return_dict=False,
            )
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template of the student's tokenizer is no valid Jinja (line {error.lineno}: "
                f"{error.message}); correct it there, or use kind = 'text' with the records written out"
            ) from None
        except template_errors() as error:
            raise TemplateRefusesError(
                f"the chat template refuses the messages ({first_line(error)}); correct the record, or use "
                "kind = 'text' with it written out"
            ) from error

    def _check_read(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> None:
        """Raises TemplateRefusesError for what is said and makes no difference to the text."""
        text = self._text(messages, tools) or ""
        for place, message in enumerate(messages):
            for key in SAID:
                if not message.get(key) or self._is_known(message, key, text):
                    continue
                if not self._reads(messages, place, key, tools):
                    raise TemplateRefusesError(
                        f"the chat template does not read {key!r} of message {place + 1}, of "
                        f"{message['role']!r}, so it would be lost; leave it out of the record, or use "
                        "kind = 'text' with it written out"
                    )
                self._read.add((message["role"], key))
        if tools and self._text(messages, None) == text:
            raise TemplateRefusesError(
                "the chat template does not read the record's tools; leave them out of the record, or use "
                "kind = 'text' with them written out"
            )

    def _is_known(self, message: Mapping[str, Any], key: str, text: str) -> bool:
        """Whether the template reads such a key; of a content, which it may leave out by place, also here."""
        if (message["role"], key) not in self._read:
            return False
        content = message["content"] if key == "content" else None
        return not isinstance(content, str) or content.strip() in text

    def _reads(self, messages: Sequence[Mapping[str, Any]], place: int, key: str, tools: Any) -> bool:
        message = messages[place]
        names = [name for name in REASONING_NAMES if message.get(name) == message[key]]
        other = {**message, key: OTHER_CONTENT}
        if key != "content":
            left_out = names if key in names else [key]
            other = {name: value for name, value in message.items() if name not in left_out}
        # Templates leave out the reasoning of earlier turns: it is read where it is so of the last message.
        return any(
            self._text([*messages[:place], other, *messages[place + 1 : end]], tools)
            != self._text(messages[:end], tools)
            for end in ((len(messages), place + 1) if key in names else (len(messages),))
        )

    def _text(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> str | None:
        """None where the template refuses them: it reads what is missing."""
        try:
            return self._applied(messages, tools, begins_answer=False, tokenize=False)
        except TemplateRefusesError:
            return None
