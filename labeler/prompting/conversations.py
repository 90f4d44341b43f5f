"""Records to conversations: messages, tools and documents, and the given response.

Understood as well: a system text and a context (Alpaca's `input`) in fields of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from labeler.config.loading import InputConfig
from labeler.errors import BadRecordError
from labeler.prompting.bad_records import field_value, shown
from labeler.prompting.messages import messages_of
from labeler.prompting.tokenization import Conversation, Message
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.text_files import RECORD

SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a record says."""

    given: Conversation
    """Everything before the response."""
    response: Message | None
    """The assistant's given answer; None where the record has none."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """All of it."""
        return self.given.messages if self.response is None else (*self.given.messages, self.response)


def exchange_of(record: dict[str, Any], config: InputConfig, mode: Literal["score", "generate"]) -> Exchange:
    """The record's conversation, for the kinds messages, prompt and prompt_response.

    Raises BadRecordError.
    """
    names = config.field_names()
    if config.kind == "messages":
        exchange = _of_messages(record, names, mode, config.ignore_keys)
    else:
        exchange = _of_prompt(
            record,
            names,
            config.list_of_texts,
            with_response=config.kind == "prompt_response" and mode == "score",
        )
    given, own = exchange.given, _optional_text(record, names.get("system"))
    system = own or config.system_prompt
    if system is None:
        return exchange
    if given.messages[0]["role"] in SYSTEM_ROLES:
        if own is not None and own.strip() != str(given.messages[0]["content"]).strip():
            raise BadRecordError(
                f"field {names['system']!r} is {shown(own)}, and the messages begin with another system "
                "message, so the teacher would see one of the two alone; remove the other",
                "bad_prompt",
            )
        return exchange
    messages = ({"role": "system", "content": system}, *given.messages)
    return Exchange(Conversation(messages, given.tools, given.documents), exchange.response)


def student_exchange(record: dict[str, Any], config: InputConfig, exchange: Exchange) -> Exchange:
    """What the student shall see of the record in place of `exchange`, with the same response.

    Raises BadRecordError.
    """
    names = config.field_names()
    given, response = exchange.given, exchange.response
    if "student_messages" in names:
        messages = messages_of(record, names["student_messages"], config.ignore_keys)
        if messages[-1]["role"] == "assistant":
            raise BadRecordError(
                f"field {names['student_messages']!r} ends with an answer; it must end with what the student "
                "answers, and the answer is the teacher's",
                "bad_prompt",
            )
        given = Conversation(tuple(messages), given.tools)
    if "student_prompt" in names:
        prompt = text_field(record, names["student_prompt"], config.list_of_texts)
        systems = tuple(message for message in given.messages if message["role"] in SYSTEM_ROLES)
        given = Conversation((*systems, {"role": "user", "content": prompt}))
    system = config.student_system_prompt
    if system is not None:
        # Those in the middle are part of the conversation, as what the user says there.
        others = tuple(itertools.dropwhile(lambda message: message["role"] in SYSTEM_ROLES, given.messages))
        own = ({"role": "system", "content": system},) if system else ()
        if not own and not others:
            raise BadRecordError(
                "without the system message, which input.student_system_prompt replaces, nothing is left of "
                "the prompt for the student; give it text, or put a message of the user into the record",
                "bad_prompt",
            )
        given = Conversation((*own, *others), given.tools, given.documents)
    return Exchange(given, response)


def text_field(record: dict[str, Any], name: str, list_of_texts: str) -> str:
    """A text field. What a list of texts becomes, `list_of_texts` says. Raises BadRecordError."""
    value = field_value(record, name)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = _one_text(value, name, list_of_texts)
    if not isinstance(value, str):
        raise BadRecordError(
            f"field {name!r} is {shown(value)}, it must be text or a list of texts; correct the record or "
            "input.fields",
            "bad_type",
        )
    if not value.strip():
        raise BadRecordError(f"field {name!r} is empty; give it text or leave the record out", "empty")
    return value


def _one_text(texts: list[str], name: str, list_of_texts: str) -> str:
    if len(texts) == 1 or list_of_texts == "first":
        return texts[0]
    if list_of_texts == "join":
        return "\n\n".join(texts)
    if list_of_texts == "each":
        reason = (
            f"field {name!r} is a list of {len(texts)} texts beside another list; make a record of each pair"
        )
        raise BadRecordError(reason, "list_of_texts")
    raise BadRecordError(
        f'field {name!r} is a list of {len(texts)} texts; set input.list_of_texts to "join" (with an empty '
        'line between), "each" (a record of each) or "first" (the others are left out)',
        "list_of_texts",
    )


def _optional_text(record: dict[str, Any], name: str | None) -> str | None:
    value = lookup_field(record, name) if name is not None else None
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRecordError(f"field {name!r} is {shown(value)}, it must be text or null", "bad_type")
    return value


def _of_prompt(
    record: dict[str, Any], names: Mapping[str, str], list_of_texts: str, *, with_response: bool
) -> Exchange:
    prompt = text_field(record, names["prompt"], list_of_texts)
    context = _optional_text(record, names.get("context"))
    if context is not None and context.strip():
        prompt = f"{prompt}\n\n{context}"
    response = text_field(record, names["response"], list_of_texts) if with_response else None
    return Exchange(
        Conversation(({"role": "user", "content": prompt},)),
        None if response is None else {"role": "assistant", "content": response},
    )


def _of_messages(
    record: dict[str, Any], names: Mapping[str, str], mode: str, ignored: Sequence[str]
) -> Exchange:
    name = names["messages"]
    messages = messages_of(record, name, ignored)
    tools = _optional_list(record, names.get("tools", "tools"))
    documents = _optional_list(record, names.get("documents", "documents"))
    response: Message | None = None
    if messages[-1]["role"] == "assistant":
        response = messages.pop()
    if not messages:
        raise BadRecordError(f"field {name!r} holds only an answer; put the question before it", "empty")
    if mode == "score" and response is None:
        raise BadRecordError(
            f"field {name!r} ends with a message of {messages[-1]['role']!r}; to be scored it must end with "
            "one of 'assistant'",
            "no_response",
        )
    return Exchange(Conversation(tuple(messages), tools, documents), response)


def _optional_list(record: dict[str, Any], name: str) -> list[Any] | None:
    """A list that a record may have, also as JSON text as files of tool traces often hold it."""
    value = lookup_field(record, name)
    if isinstance(value, str) and value.strip():
        try:
            value = RECORD.decode(value)
        except ValueError as error:
            reason = f"field {name!r} is {shown(value)}, it must be a list ({error!s:.200})"
            raise BadRecordError(reason, "bad_type") from None
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list):
        raise BadRecordError(f"field {name!r} is {shown(value)}, it must be a list or null", "bad_type")
    return value
