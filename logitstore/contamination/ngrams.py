"""Texts that share a run of words with another: what reports of contamination count.

Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C: 13 words in a row. Chinese and
Japanese put no space between words, so each of their characters is a word here, but for runs of katakana.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from logitstore.contamination.near import Match
from logitstore.contamination.prompt_texts import words_of

MIN_WORDS = 6
"""A kept text of fewer words is met by an equal text alone: everybody writes runs so short."""

Run = tuple[str, ...]
_ALONE = r"\u3005\u3040-\u309f\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(rf"[{_ALONE}]|[^{_ALONE}]+")


class NgramTexts:
    """Kept texts by their runs of `num_words` words. A kept text that is shorter is one run."""

    def __init__(self, num_words: int) -> None:
        self._num_words = num_words
        self._holder: dict[Run, int] = {}
        self._num_runs: dict[int, int] = {}
        self._lengths: set[int] = set()
        self._block: list[list[str]] = []

    def start_block(self, texts: Sequence[str]) -> None:
        self._block = [_words(text) for text in texts]

    def nearest(self, place: int) -> Match | None:
        """The text that shares most runs; the score is the share of its own runs that were met."""
        words, shared = self._block[place], dict[int, int]()
        for length in sorted(self._lengths):
            if len(words) < length or (length < MIN_WORDS and len(words) != length):
                continue
            for run in _runs(words, length):
                if (number := self._holder.get(run)) is not None:
                    shared[number] = shared.get(number, 0) + 1
        if not shared:
            return None
        partner = max(shared, key=lambda number: (shared[number] / self._num_runs[number], -number))
        return Match(partner, shared[partner] / self._num_runs[partner], "ngram")

    def keep(self, place: int, number: int) -> None:
        words = self._block[place]
        if not words:
            return
        length = min(len(words), self._num_words)
        runs = _runs(words, length)
        self._lengths.add(length)
        self._num_runs[number] = len(runs)
        for run in runs:
            self._holder.setdefault(run, number)


def _words(text: str) -> list[str]:
    return [part for word in words_of(text) for part in _WORDS.findall(word)]


def _runs(words: Sequence[str], length: int) -> set[Run]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}
