"""What of a record is compared: the words of its prompt, found by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from logitstore.errors import UnsupportedInputError
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records

TEXT_FIELDS = ("prompt", "question", "instruction", "query", "problem")
"""Names that data sets give to a prompt, the usual one first."""
CHAT_FIELDS = ("messages", "conversations", "conversation")
"""Names that they give to a list of messages."""
PROMPT_FIELDS = (*TEXT_FIELDS, "text", "turns", *CHAT_FIELDS)
"""Fields that may hold the prompt, in the order in which they are looked for."""
CONTEXT_FIELDS = ("input", "context")
"""Fields that belong to an `instruction` or a `prompt`, as in Alpaca's files."""
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""Thai, Lao, Burmese and Khmer."""
_SHOWN_OTHERWISE = re.compile("[\u20d0-\u20ff\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Signs that say how the one before is drawn, as the emoji that a heart or a digit becomes."""
USER_ROLES = ("user", "human")


@dataclass(frozen=True, slots=True)
class PromptText:
    """One record that can be compared."""

    place: str
    """"file:line"."""
    record_id: str | None
    record: Mapping[str, Any]
    text: str
    """The words of its prompt, as they are."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be compared."""

    place: str
    reason: str
    record: Mapping[str, Any] | None
    text: str | None
    """What stands in the input where there is no record; None where that cannot be told either."""


def read_prompts(
    uri: str,
    field: str | None = None,
    *,
    field_option: str = "--field",
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[PromptText | Unreadable]:
    """The prompts of an input, in its order.

    Args:
        uri: path, glob, folder or URL, as `input.uri` of a job.
        field: the field that holds the text; dots reach into nested objects. None looks for the names of
            `PROMPT_FIELDS` in every record; a system message is never part of the text.
        field_option: how the caller's command names the field, for messages.

    Raises:
        InputNotFoundError: nothing matches `uri`.
    """
    for raw in iter_records(uri, storage_options=storage_options):
        yield _prompt_of(raw, field, field_option)


def _prompt_of(raw: RawRecord, field: str | None, field_option: str) -> PromptText | Unreadable:
    place = f"{raw.file}:{raw.line}"
    if raw.record is None:
        return Unreadable(place, raw.error or "", None, raw.text)
    try:
        text = _text_of(raw.content, field, field_option)
    except UnsupportedInputError as error:
        return Unreadable(place, str(error), raw.content, None)
    record_id = raw.record.get("id")
    return PromptText(place, None if record_id is None else str(record_id), raw.content, text)


def _text_of(record: Mapping[str, Any], field: str | None, field_option: str) -> str:
    name = field or next((name for name in PROMPT_FIELDS if record.get(name)), None)
    if name is None:
        raise UnsupportedInputError(
            f"none of the fields {', '.join(PROMPT_FIELDS)} holds a prompt; name the field with "
            f"{field_option}"
        )
    text = _joined(lookup_field(record, name), name)
    if field is None and name in ("instruction", "prompt"):
        contexts = [record.get(context) for context in CONTEXT_FIELDS]
        text = "\n\n".join([text, *(one for one in contexts if isinstance(one, str) and one.strip())])
    if not text.strip():
        raise UnsupportedInputError(f"field {name!r} has no text; give it text or leave the record out")
    return text


def _joined(value: Any, name: str) -> str:
    """Text, a list of texts, or the user's turns of a list of messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [one if isinstance(one, str) else _user_text(one) for one in value]
        if any(text is not None for text in texts):
            return "\n\n".join(text for text in texts if text)
    raise UnsupportedInputError(
        f"field {name!r} is {value!r:.80}, it must be text, a list of texts or messages of a user"
    )


def _user_text(message: Any) -> str | None:
    if not isinstance(message, dict):
        return None
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role not in USER_ROLES:
        return "" if isinstance(role, str) else None
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def words_of(text: str) -> list[str]:
    """The text's words for comparison: NFKC, without case and punctuation."""
    signs = [" "]
    for sign in _SHOWN_OTHERWISE.sub("", unicodedata.normalize("NFKC", text).casefold()):
        in_word = sign.isalnum() or (signs[-1] != " " and _is_mark_of_word(sign))
        signs.append(sign if in_word else " ")
    return "".join(signs).split()


def _is_mark_of_word(sign: str) -> bool:
    """Whether a mark, such as a vowel sign of Hindi, is part of the word that it stands in.

    Where no spaces stand between words, as in Thai, a whole sentence would be one; there marks end them.
    """
    return unicodedata.category(sign).startswith("M") and not _WITHOUT_SPACES.match(sign)
