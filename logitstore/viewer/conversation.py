"""What a sequence says, for a line of the list: the first user's words and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from logitstore.decoding.tokens import TokenTexts, visible
from logitstore.errors import StoreError
from logitstore.exchange.chat_text import PromptParser
from logitstore.exchange.texts import last_run_start, render_of, texts_around
from logitstore.records import Segment
from logitstore.store import LogitStore

MAX_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one sequence, each text cut to MAX_CHARACTERS."""

    asked: str
    """The first user's message; the whole prompt where messages cannot be told apart."""
    answer: str
    num_turns: int
    """User messages of the prompt; 0 where they cannot be told apart."""


class Conversations:
    """Finds messages in a store's sequences by the store's chat template, or else the tokenizer folder's."""

    def __init__(self, store: LogitStore, texts: TokenTexts, folder: Path | None = None) -> None:
        self._texts = texts
        try:
            render = render_of(store, folder)
            self._parser = None if render is None else PromptParser(render)
        except StoreError:
            self._parser = None

    def of(
        self, token_ids_T: np.ndarray, prompt_length: int, segments_T: np.ndarray | None = None
    ) -> Conversation:
        start = prompt_length
        if segments_T is not None:
            start = last_run_start(segments_T != Segment.CONTEXT, prompt_length)
        prompt, answer = texts_around(token_ids_T, start, self._texts)
        messages = None if self._parser is None else self._parser.messages(prompt)
        asked = [message["content"] for message in messages or () if message["role"] == "user"]
        return Conversation(_short(asked[0] if asked else prompt), _short(answer), len(asked))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return visible(text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rstrip() + "…")
