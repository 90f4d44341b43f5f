"""Where a response ends: the one set of ids that stopping, filters, trailing text and masks go by.

A model's files often disagree: config.json of a fine-tune may still name the base model's end of text while
its tokenizer and its chat template end a turn with another token. Whatever any of them names ends a response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitstore.common.config_file import ConfigError

MAX_TOKEN_ID = 2**31 - 1
CONFIG_FILES = ("generation_config.json", "config.json")


@dataclass(frozen=True, slots=True)
class EndToken:
    """An id that ends a response."""

    token_id: int
    text: str
    """As it stands in text, for the user."""
    named_by: tuple[str, ...]
    """What names it: files, "tokenizer", "chat template", settings."""


@dataclass(frozen=True, slots=True)
class ResponseEnds:
    """What ends a response, and what in one is no text."""

    tokens: tuple[EndToken, ...] = ()
    """By id, ascending."""
    stop: tuple[str, ...] = ()
    """Texts that end a response and are no token of their own."""
    blank_ids: frozenset[int] = frozenset()
    """Ids that show nothing: markers and white space."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.token_id for token in self.tokens)

    def __str__(self) -> str:
        shown = [f"{token.text!r} {token.token_id} ({', '.join(token.named_by)})" for token in self.tokens]
        shown += [f"the text {text!r}" for text in self.stop]
        return ", ".join(shown) or "no token at all: every response runs to sampling.max_tokens"


def named_in_files(read: Callable[[str], Mapping[str, Any] | None]) -> list[tuple[int, str]]:
    """(id, file) for every end that the model's files name; `read` gives a file's content by name.

    None and negative numbers name none. Raises ConfigError for what is no id.
    """
    found: list[tuple[int, str]] = []
    for name in CONFIG_FILES:
        content = read(name) or {}
        for section in (content, content.get("text_config")):
            ids = section.get("eos_token_id") if isinstance(section, Mapping) else None
            found += [
                (i, name) for one in (ids if isinstance(ids, list) else [ids]) if (i := _id(one, name)) >= 0
            ]
    return found


def _id(value: object, name: str) -> int:
    if value is None:
        return -1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])
    if type(value) is not int or value > MAX_TOKEN_ID:
        raise ConfigError(
            f"teacher.model: eos_token_id of its {name} names {value!r:.40}, which is no token's id; correct "
            "the file, or fetch the model again"
        )
    return value


def union_of_ends(
    named: Iterable[tuple[int, str]], decode: Callable[[Sequence[int]], str]
) -> tuple[EndToken, ...]:
    """One `EndToken` per id, with everything that names it."""
    by_id: dict[int, list[str]] = {}
    for token_id, source in named:
        sources = by_id.setdefault(token_id, [])
        if source not in sources:
            sources.append(source)
    return tuple(EndToken(i, decode([i]), tuple(sources)) for i, sources in sorted(by_id.items()))
