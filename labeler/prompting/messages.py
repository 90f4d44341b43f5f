"""A record's messages in one form: all their keys, text alone as content, calls of tools as objects.

Understood as well: ShareGPT's messages ({"from": ..., "value": ...}), and content in parts of text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from labeler.errors import BadRecordError
from labeler.prompting.bad_records import field_value, shown
from labeler.prompting.tokenization import Message
from logitstore.inputs.chat_templates import REASONING_NAMES, with_all_reasoning_names
from logitstore.inputs.text_files import RECORD

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""Roles of ShareGPT that chat templates call otherwise; others keep their name."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text; the last two are those of OpenAI's Responses."""
INSTEAD_OF_CONTENT = ("tool_calls", "function_call", *REASONING_NAMES)
"""Keys that may stand in a message without content."""


def messages_of(record: dict[str, Any], name: str, ignored: Sequence[str]) -> list[Message]:
    """The messages in a field; `ignored` are keys that the job allows to be lost. Raises BadRecordError."""
    value = field_value(record, name)
    if not isinstance(value, list):
        raise BadRecordError(
            f"field {name!r} is {shown(value)}, it must be a list of messages; correct input.fields",
            "bad_type",
        )
    if not value:
        raise BadRecordError(f"field {name!r} is empty; give it a message", "empty")
    messages = [_with_all_names(_message(message, name), ignored) for message in value]
    last = messages[-1]
    if not any(last.get(key) for key in INSTEAD_OF_CONTENT) and not _visible(last["content"]):
        raise BadRecordError(f"the last message of field {name!r} is empty; give it text", "empty")
    return messages


def _visible(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def _message(message: Any, name: str) -> Message:
    """One message with all its keys but the null ones, which Parquet gives to every message of a column."""
    if not isinstance(message, dict):
        raise _bad_message(message, name)
    if "role" not in message and isinstance(message.get("from"), str) and "value" in message:
        if message["from"] == "function_call":
            return _function_call(message, name)
        role = SHAREGPT_ROLES.get(message["from"], message["from"])
        others = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {"role": role, "content": message["value"], **others}
    kept = {key: value for key, value in message.items() if value is not None}
    kept["content"] = message.get("content")
    if not isinstance(kept.get("role"), str):
        raise _bad_message(message, name)
    if kept["content"] is None:
        if not any(kept.get(key) for key in INSTEAD_OF_CONTENT):
            raise _bad_message(message, name)
    elif isinstance(kept["content"], list):
        kept["content"] = _parts(kept["content"], name)
    elif not isinstance(kept["content"], str):
        raise _bad_message(message, name)
    if kept.get("tool_calls"):
        kept["tool_calls"] = [_with_parsed_arguments(call) for call in _tool_calls(kept["tool_calls"], name)]
    return kept


def _tool_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls of a message: a list of objects, also as JSON text as files of tool traces often hold it."""
    calls = value
    if isinstance(calls, str):
        with contextlib.suppress(ValueError):
            calls = RECORD.decode(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecordError(
            f'field {name!r} holds the tool_calls {shown(value)}; they must be a list of {{"type": '
            '"function", "function": {"name": text, "arguments": object}}, or that as JSON text',
            "bad_type",
        )
    return calls


def _function_call(message: Mapping[str, Any], name: str) -> Message:
    """ShareGPT's turn of the assistant that calls tools: JSON of {"name", "arguments"}, or a list of them."""
    calls = message["value"]
    try:
        calls = RECORD.decode(calls) if isinstance(calls, str) else calls
    except ValueError:
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(one, dict) and "name" in one for one in calls):
        raise BadRecordError(
            f'field {name!r} holds {shown(message)}; the value of a function_call is {{"name": text, '
            '"arguments": object} as JSON, or a list of them',
            "bad_type",
        )
    tool_calls = [_with_parsed_arguments({"type": "function", "function": one}) for one in calls]
    others = {
        key: value for key, value in message.items() if key not in ("from", "value") and value is not None
    }
    return {"role": "assistant", "content": None, "tool_calls": tool_calls, **others}


def _with_all_names(message: Message, ignored: Sequence[str]) -> Message:
    has_ignored = any(message.get(name) for name in REASONING_NAMES if name in ignored)
    return message if has_ignored else dict(with_all_reasoning_names(message))


def _bad_message(message: Any, name: str) -> BadRecordError:
    return BadRecordError(
        f'field {name!r} holds {shown(message)}; a message is {{"role": text, "content": text}}', "bad_type"
    )


def _parts(parts: list[Any], name: str) -> str:
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif (
            isinstance(part, dict)
            and part.get("type", "text") in TEXT_PARTS
            and isinstance(part.get("text"), str)
        ):
            texts.append(part["text"])
        else:
            raise BadRecordError(
                f"field {name!r} holds the content part {shown(part)}; only parts of text can be labeled",
                "bad_type",
            )
    return "\n".join(texts)


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object: OpenAI's files hold them as JSON text, which templates would
    quote once more."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = RECORD.decode(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
