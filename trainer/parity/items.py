"""A user's own file of questions with their answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.reading import iter_records
from trainer.parity.records import Item

PROMPT_FIELDS = ("messages", "prompt", "question", "instruction", "text")
ANSWER_FIELDS = ("answer", "reference", "expected", "target", "response", "completion", "output")


def read_items(
    uri: str,
    prompt_field: str | None,
    answer_field: str | None,
    limit: int | None,
    *,
    needs_answer: bool = True,
) -> list[Item]:
    """The records of a file, all of which must be usable.

    The prompt is text or messages; of messages that end with the assistant's, that one is the answer where
    no field holds one. Raises ConfigError.
    """
    found: list[Item] = []
    read = list(islice(iter_records(uri), limit))
    in_several = len({raw.file for raw in read}) > 1
    for raw in read:
        where = f"{raw.file}:{raw.line}"
        if raw.record is None:
            raise ConfigError(f"{where}: {raw.error}; parity needs every record of its file")
        unnamed = where if in_several else f"line {raw.line}"
        found.append(_item(raw.record, where, unnamed, prompt_field, answer_field, needs_answer))
    if not found:
        raise ConfigError(f"{uri} has no record; give a file with one question a line")
    ids = [item.item_id for item in found]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(f"{uri}: two records have the id {twice!r}; results are told by id, so change one")
    return found


def _item(
    record: Mapping[str, Any],
    where: str,
    unnamed: str,
    prompt_field: str | None,
    answer_field: str | None,
    needs_answer: bool,
) -> Item:
    name = prompt_field or next((name for name in PROMPT_FIELDS if record.get(name)), None)
    value = None if name is None else lookup_field(record, name)
    if not value or (isinstance(value, str) and not value.strip()):
        raise ConfigError(
            f"{where}: no prompt in {prompt_field or 'any of the fields ' + ', '.join(PROMPT_FIELDS)}; "
            "name the field with --prompt-field"
        )
    messages = _messages(value, where, str(name))
    given = answer_field or next((name for name in ANSWER_FIELDS if record.get(name) is not None), None)
    answer = None if given is None else lookup_field(record, given)
    if messages[-1]["role"] == "assistant":
        answer = messages[-1]["content"] if answer is None else answer
        messages = messages[:-1]
    answer = _number_in_words(answer)
    if answer is not None and not isinstance(answer, str):
        raise ConfigError(
            f"{where}: the answer is {answer!r:.120}, and must be a text or a "
            "number; write one right answer, or name another field with --answer-field"
        )
    if answer is None and not needs_answer:
        answer = ""
    elif answer is None or not answer.strip():
        raise ConfigError(
            f"{where}: no answer to compare with in "
            f"{answer_field or 'any of the fields ' + ', '.join(ANSWER_FIELDS)}; name the field with "
            "--answer-field"
        )
    if not messages or messages[-1]["role"] != "user":
        raise ConfigError(f"{where}: the prompt does not end with a message of the user; correct the record")
    own = record.get("id")
    return Item(unnamed if own is None else str(own), tuple(messages), answer)


def _number_in_words(value: Any) -> Any:
    """A number as a model would write it: 18 for the 18.0 of a column that once held a missing value. What
    is no number stays as it is, and so do NaN and infinity."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value + 0.0)).normalize():f}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _messages(value: Any, where: str, name: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        messages = [{"role": one.get("role"), "content": one.get("content")} for one in value]
        if all(isinstance(text, str) for one in messages for text in one.values()):
            return messages
    raise ConfigError(
        f"{where}: the field {name!r} must be text, or messages whose role and content are text; correct the "
        "record, or name another field with --prompt-field"
    )
