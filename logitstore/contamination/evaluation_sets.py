"""Evaluation sets, and which of many texts are near one of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from logitstore.contamination.near import Match, NearTexts, Partner
from logitstore.contamination.prompt_texts import Unreadable, read_prompts
from logitstore.errors import UnsupportedInputError

Way = Literal["ngram", "cosine"]
DEFAULT_WORDS = 13
DEFAULT_COSINE = 0.85
BLOCK_TEXTS = 512
FIELD_OPTION = "--eval-field (of `store verify`) or --against-field (of `label decontaminate`)"
_Item = TypeVar("_Item")


def read_evaluation_sets(
    uris: Sequence[str], field: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[Partner]:
    """All texts of the sets.

    Args:
        uris: paths, globs, folders or URLs.
        field: the field that holds the text; None looks for the names of `PROMPT_FIELDS`.

    Raises:
        InputNotFoundError: nothing matches.
        UnsupportedInputError: a set cannot be read whole, or has no text.
    """
    partners: list[Partner] = []
    for uri in uris:
        found = list(_texts_of(uri, field, storage_options))
        if not found:
            raise UnsupportedInputError(
                f"{uri} has no text to compare with; name its field with {FIELD_OPTION}"
            )
        partners += found
    return partners


def near_texts(way: Way, *, words: int = DEFAULT_WORDS, cosine: float = DEFAULT_COSINE) -> NearTexts:
    """What finds texts that share `words` words in a row, or whose embeddings have this cosine.

    Raises ModuleNotFoundError without the package that "cosine" needs; commands say which extra brings it.
    """
    if way == "cosine":
        from logitstore.contamination.cosine import CosineTexts

        return CosineTexts(cosine)
    from logitstore.contamination.ngrams import NgramTexts

    return NgramTexts(words)


def find_contaminated(
    texts: Iterable[tuple[_Item, str]], methods: Sequence[NearTexts], partners: Sequence[Partner]
) -> Iterator[tuple[_Item, Match, Partner]]:
    """Pairs (what it is, text) whose text is near a partner's, by the first method that finds one."""
    for block in _blocks(enumerate(partners)):
        for method in methods:
            method.start_block([partner.text for _, partner in block])
            for place, (number, _) in enumerate(block):
                method.keep(place, number)
    for block in _blocks(texts):
        for method in methods:
            method.start_block([text for _, text in block])
        for place, (item, _) in enumerate(block):
            match = next((found for way in methods if (found := way.nearest(place))), None)
            if match is not None:
                yield item, match, partners[match.partner]


def _blocks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while block := list(itertools.islice(iterator, BLOCK_TEXTS)):
        yield block


def _texts_of(uri: str, field: str | None, storage_options: Mapping[str, Any] | None) -> Iterator[Partner]:
    for one in read_prompts(uri, field, field_option=FIELD_OPTION, storage_options=storage_options):
        if isinstance(one, Unreadable):
            raise UnsupportedInputError(
                f"{uri}, {one.place}: {one.reason}; an evaluation set must be read whole, or what is left "
                "out of it would count as clean"
            )
        yield Partner(f"{uri}:{one.place.rpartition(':')[2]}", one.record_id, one.text)
