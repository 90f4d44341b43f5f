"""What a way of finding near texts must do, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

EMBEDDING = "wordllama l2_supercat 256"
"""What meaning is compared by; results of another embedding are other results."""
Method = Literal["minhash", "cosine", "ngram"]


@dataclass(frozen=True, slots=True)
class Match:
    """A text that is near another."""

    partner: int
    """Number of the other text, as given to `keep`."""
    score: float
    """How near, from 0 to 1, by the method's own measure."""
    method: Method


@dataclass(frozen=True, slots=True)
class Partner:
    """The text for whose sake another is dropped or named."""

    place: str
    record_id: str | None
    text: str


class NearTexts(Protocol):
    """Texts that are kept, searched a block at a time.

    Within a block the answer for a text counts those of the block that were kept before it, so the result
    does not depend on the size of blocks.
    """

    def start_block(self, texts: Sequence[str]) -> None:
        """Prepare the search for each of `texts`."""
        ...

    def nearest(self, place: int) -> Match | None:
        """The kept text nearest to the block's text at `place`, if it is near enough."""
        ...

    def keep(self, place: int, number: int) -> None:
        """The block's text at `place` is one of the kept from now on, as `number`."""
        ...
