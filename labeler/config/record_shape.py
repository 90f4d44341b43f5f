"""What an input's records hold, as far as the names of their fields and their values tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from labeler.config.found_ids import ID_FIELDS
from logitstore.contamination.prompt_texts import CHAT_FIELDS, TEXT_FIELDS
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.parts import is_answer

FIELDS_OF_ROLE: dict[str, tuple[str, ...]] = {
    "messages": (*CHAT_FIELDS, "body.messages"),
    "token_ids": ("token_ids", "input_ids"),
    "prompt": (*TEXT_FIELDS, "turns", "body.prompt"),
    "response": ("response", "completion", "answer", "output", "solution"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "context": ("context", "input"),
    "tools": ("tools", "body.tools"),
}
"""Names that data sets give to what a record holds, the usual one first. "input" is a prompt's context, as
in Alpaca; "body" is what a line of OpenAI's batch files sends."""

OPTIONAL_ROLES = ("system", "context", "tools")


@dataclass(frozen=True, slots=True)
class Shape:
    """What records hold, as far as their fields tell."""

    kind: str
    mode: Literal["score", "generate"]
    fields: dict[str, str] = field(default_factory=dict)
    """Field by role, where it is not the role's own name."""
    form: str = ""
    """What files of this form are called."""
    unused: tuple[str, ...] = ()
    """Fields that are no part of what the teacher sees."""


def shape_of(records: list[dict[str, Any]], given: Mapping[str, str] = MappingProxyType({})) -> Shape | None:
    """What the records hold; None where no known field tells it. `given` are fields by role."""
    fields = {role: name for role in FIELDS_OF_ROLE if (name := _field(records, role, given)) is not None}
    chat = _chat_field(records[0], given)
    if chat is not None:
        answered = all(_is_answered(lookup_field(record, chat)) for record in records)
        shape = Shape("messages", "score" if answered else "generate", form=_form_of_chats(records, chat))
        return _named(shape, records, {**fields, "messages": chat}, "messages", "tools", "system")
    if "token_ids" in fields:
        return _named(Shape("token_ids", "score"), records, fields, "token_ids")
    if "prompt" in fields and "response" in fields:
        form = "Alpaca's form" if {"instruction", "output"} <= {fields["prompt"], fields["response"]} else ""
        shape = Shape("prompt_response", "score", form=form)
        return _named(shape, records, fields, "prompt", "response", "system", "context")
    if "prompt" in fields:
        return _named(Shape("prompt", "generate"), records, fields, "prompt", "system", "context")
    return _named(Shape("text", "score"), records, fields, "text") if "text" in fields else None


def _named(shape: Shape, records: list[dict[str, Any]], fields: Mapping[str, str], *roles: str) -> Shape:
    """The shape with the fields of its roles, and with those that stay unread."""
    read = {fields[role].partition(".")[0] for role in roles if role in fields}
    names = dict.fromkeys(name for record in records for name in record)
    unused = tuple(name for name in names if name not in (*read, *ID_FIELDS, "documents"))
    return replace(shape, fields=_renamed(fields, *roles), unused=unused)


def _chat_field(record: dict[str, Any], given: Mapping[str, str]) -> str | None:
    names = (*FIELDS_OF_ROLE["messages"], *FIELDS_OF_ROLE["prompt"])
    if "messages" in given or "prompt" in given:
        names = tuple(given[role] for role in ("messages", "prompt") if role in given)
    return next((name for name in names if _is_conversation(lookup_field(record, name))), None)


def _form_of_chats(records: list[dict[str, Any]], name: str) -> str:
    if name.startswith("body."):
        return "an OpenAI batch file"
    messages = lookup_field(records[0], name)
    return "ShareGPT's form" if "from" in messages[0] else "OpenAI's form of chats"


def fits_in_some(records: list[dict[str, Any]]) -> str:
    """What would tell the kind, were it not for some of the records."""
    for role in ("messages", "token_ids", "prompt", "text"):
        for name in FIELDS_OF_ROLE[role]:
            count = sum(_fits(role, lookup_field(record, name)) for record in records)
            if count:
                return f", and {name!r} fits {role} in {count} of the first {len(records)} records only"
    return ""


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_answered(messages: Any) -> bool:
    return _is_conversation(messages) and is_answer(messages[-1])


def _field(records: list[dict[str, Any]], role: str, given: Mapping[str, str]) -> str | None:
    """The field of a role: in all records, or in some where a record may lack it."""
    enough = any if role in OPTIONAL_ROLES else all
    for name in (given[role],) if role in given else FIELDS_OF_ROLE[role]:
        if enough(_fits(role, lookup_field(record, name)) for record in records):
            return name
    return None


def _fits(role: str, value: Any) -> bool:
    if role == "messages":
        return _is_conversation(value)
    if role == "token_ids":
        return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
    if role == "tools":
        return bool(value)
    is_listed = role in ("prompt", "text") and isinstance(value, list) and bool(value)
    return isinstance(value, str) or (is_listed and all(isinstance(item, str) for item in value))


def _renamed(fields: Mapping[str, str], *roles: str) -> dict[str, str]:
    """The fields of these roles; those that a record may lack are named whatever they are called."""
    return {
        role: fields[role]
        for role in roles
        if role in fields and (fields[role] != role or role in ("system", "context"))
    }
