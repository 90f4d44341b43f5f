"""Evaluation items that the student has met in training: those that share a run of words with a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from logitstore.common.config_file import ConfigError
from logitstore.contamination.ngrams import NgramTexts
from trainer.parity.stored import prompts_of
from trainer.run.file_names import METRICS_NAME

NUM_WORDS = 13


@dataclass(frozen=True, slots=True)
class Contamination:
    """What the check found."""

    num_prompts: int
    """Prompts of the training."""
    stores: tuple[str, ...]
    met: Mapping[str, str]
    """By item: the training prompt that shares NUM_WORDS words in a row with it, or all of its own."""


def training_stores(student: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The stores that were named, else those that the student's folder says it was trained on.

    Raises ConfigError where nobody says.
    """
    if labels:
        return tuple(labels)
    try:
        metrics = json.loads(Path(student, METRICS_NAME).read_bytes())
        return tuple(store["uri"] for store in metrics["stores"])
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError):
        raise ConfigError(
            f"nothing says what {student!r} was trained on, so it may have learned the questions themselves; "
            "give --labels STORE, or --unchecked to do without"
        ) from None


def contamination_of(
    questions: Mapping[str, Sequence[str]], stores: Sequence[str], tokenizer: str
) -> Contamination:
    """`questions`: by item, the texts each of which is the question. `tokenizer`: the student's folder."""
    found = _Found(questions)
    for uri in stores:
        found.compare(prompts_of(uri, tokenizer))
    return Contamination(found.num_prompts, tuple(stores), found.all_met())


class _Found:
    def __init__(self, questions: Mapping[str, Sequence[str]]) -> None:
        self._items = list(questions)
        self._asked = [(item, text) for item, texts in questions.items() for text in texts]
        self._texts = _kept([text for _, text in self._asked])
        self.num_prompts = 0
        self._met: dict[str, str] = {}
        self._prompts: list[str] = []

    def compare(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self.num_prompts += 1
            self._texts.start_block([prompt])
            match = self._texts.nearest(0)
            if match is not None:
                self._met.setdefault(self._asked[match.partner][0], prompt)
                self._prompts.append(prompt)

    def all_met(self) -> dict[str, str]:
        """For each item that a prompt met, one such prompt.

        `compare` finds one item for a prompt; the others are found here, from the item's side.
        """
        training = _kept(self._prompts)
        training.start_block([text for _, text in self._asked])
        for number, (item, _) in enumerate(self._asked):
            if item not in self._met and (match := training.nearest(number)) is not None:
                self._met[item] = self._prompts[match.partner]
        return {item: self._met[item] for item in self._items if item in self._met}


def _kept(texts: Sequence[str]) -> NgramTexts:
    found = NgramTexts(NUM_WORDS)
    found.start_block(texts)
    for number in range(len(texts)):
        found.keep(number, number)
    return found
