"""Records of the input that become several records of a store: one for each turn, or for each text of a list.

A part is a record of its own under its parent's id with `#turn-2` or `#text-2` behind, so that a part whose
content did not change keeps its labels when its parent grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from logitstore.inputs.identity import lookup_field, record_id
from logitstore.inputs.raw_record import RawRecord
from logitstore.manifest.fields import PART_NAMES, InputInfo

ANSWER_ROLES = ("assistant", "gpt", "function_call")
LEARNING_KEYS = ("weight", "train", "training", "loss")
"""Keys of an answer that, where they are 0 or false, say that it is not to be learned."""
LISTED_ROLES = ("prompt", "response", "text")
"""Roles whose field may be a list of texts."""
_PART = re.compile(r"#(?:turn|text)-(\d+)(?:-\d+)?$")


def parts_of(records: Iterable[RawRecord], info: InputInfo) -> Iterator[RawRecord]:
    """The records, each in its parts where `info.parts` says so; what has no parts stays as it is."""
    for raw in records:
        if raw.record is None or not info.parts:
            yield raw
            continue
        cut = _turns if info.parts == "turns" else _texts
        for number, content in cut(raw.record, info.fields):
            yield replace(raw, record=content, part=number, parent=raw.record)


def id_of(raw: RawRecord, info: InputInfo) -> str:
    """Id of a record or part. Raises ValueError as `record_id`, and for what cannot be read."""
    if raw.record is None:
        raise ValueError(raw.error)
    if not raw.part:
        return record_id(raw.record, info)
    return f"{record_id(raw.parent or raw.record, info)}#{PART_NAMES[info.parts]}-{raw.part}"


def parent_id(name: str) -> str:
    """Id of the input's record that a part belongs to; any other id as it is."""
    return _PART.sub("", name)


def part_number(name: str | None) -> int:
    """The number of the part in an id, from 1; 0 for what is no part."""
    found = _PART.search(name) if name is not None else None
    return int(found[1]) if found else 0


def is_answer(message: object) -> bool:
    """Whether it is a message of the assistant's."""
    return isinstance(message, Mapping) and message.get("role", message.get("from")) in ANSWER_ROLES


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether an answer is to be learned, as far as its message says."""
    return not any(message.get(key) in (0, False) for key in LEARNING_KEYS if key in message)


def _turns(
    record: Mapping[str, Any], fields: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, Any] | Mapping[str, Any]]]:
    """The conversation up to each answer, and whole where it ends without one. A first message is none, and
    one that is not to be learned ends no part; where nothing is left the record stays whole, for a reject."""
    name = fields["messages"]
    messages = lookup_field(record, name)
    if not isinstance(messages, list) or not messages:
        yield 0, record
        return
    number = num_parts = 0
    for place, message in enumerate(messages):
        if is_answer(message):
            number += 1
            if place and is_learned(message):
                num_parts += 1
                yield number, _with_field(record, name, messages[: place + 1])
    if not is_answer(messages[-1]) or len(messages) == 1:
        yield number + 1, record
    elif not num_parts:
        yield 0, record


def _texts(
    record: Mapping[str, Any], fields: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, Any] | Mapping[str, Any]]]:
    """A record for each text of the one field that is a list of them."""
    lists = {
        name: value
        for role in LISTED_ROLES
        if (name := fields.get(role)) is not None and _are_texts(value := lookup_field(record, name))
    }
    if len(lists) != 1:
        yield 0, record  # two lists: which text of one belongs to which of the other is not known
        return
    ((name, texts),) = lists.items()
    for number, text in enumerate(texts, start=1):
        yield number, _with_field(record, name, text)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _with_field(record: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """A copy with another value in a field that is there; a dotted name reaches into nested objects."""
    if name in record:
        return {**record, name: value}
    outer, _, inner = name.partition(".")
    return {**record, outer: _with_field(record[outer], inner, value)}
