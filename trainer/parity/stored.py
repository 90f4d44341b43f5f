"""Texts of stores: a teacher's answers, and the prompts that a student was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from logitstore.common.config_file import ConfigError
from logitstore.decoding.tokenizer_choice import choose_texts
from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import PromptParser, reasoning_apart
from logitstore.exchange.texts import (
    last_answer_start,
    render_of,
    text_of,
    texts_around,
)
from logitstore.manifest.fields import STUDENT_PROMPTS
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.manifest.turns import masks_tell_turns
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from trainer.parity.records import Answer, Item

Key = tuple[tuple[str, str], ...]
"""(role, content) of each message, without regard to white space."""


@dataclass(frozen=True, slots=True)
class StoredText:
    """One sequence of a store, as text."""

    messages: Sequence[Mapping[str, str]]
    """The prompt's; one of the user's with all of it where no chat template tells them apart."""
    answer: str
    """Without reasoning."""
    is_cut: bool


def is_store(place: str) -> bool:
    return "://" in place or Path(place, MANIFEST_NAME).is_file()


def stored_answers(uri: str, items: Sequence[Item]) -> dict[str, Answer]:
    """What the teacher answered, by item; those that the store has no answer to are left out.

    An item is what a student is asked: its own prompt where it sees another than the teacher. It is known by
    all of its messages, those of the system left out where the store has no answer to it
    with them. Of several samples the first counts. Raises ConfigError for a store of given responses.
    """
    store = LogitStore.open(uri)
    if store.manifest.labels.mode != "generate":
        raise ConfigError(
            f"--teacher {uri}: its responses were given (labels.mode = {store.manifest.labels.mode!r}), so "
            "they are not the teacher's; give a store whose responses it generated, or its model"
        )
    whole: dict[Key, Answer] = {}
    without_system: dict[Key, Answer] = {}
    for text in _texts_of(store, None, students_own=True):
        answer = Answer(text.answer, None, text.is_cut, False)
        whole.setdefault(_key(text.messages), answer)
        without_system.setdefault(_key(_talk(text.messages)), answer)
    found: dict[str, Answer] = {}
    for item in items:
        answer = whole.get(_key(item.messages)) or without_system.get(_key(_talk(item.messages)))
        if answer is not None:
            found[item.item_id] = answer
    return found


def prompts_of(uri: str, tokenizer: str) -> Iterator[str]:
    """What users asked in a store's sequences, all turns of each, of the teacher and, where it is another, of
    the student; whole prompts where no chat template tells turns apart, and all of a plain text.

    `tokenizer`: the folder of the student's, for a store that keeps none, as those of plain text.
    """
    store = LogitStore.open(uri)
    kinds = (False, True) if STUDENT_PROMPTS in store.manifest.features else (True,)
    for text in (one for own in kinds for one in _texts_of(store, tokenizer, students_own=own)):
        yield "\n\n".join(one["content"] for one in text.messages if one["role"] == "user")


def _key(messages: Sequence[Mapping[str, str]]) -> Key:
    return tuple((one["role"], " ".join(one["content"].split())) for one in messages)


def _talk(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [one for one in messages if one["role"] != "system"]


def _texts_of(store: LogitStore, tokenizer: str | None, *, students_own: bool) -> Iterator[StoredText]:
    """`students_own` gives a student's own prompt where it has one, in place of the teacher's."""
    folder = None if tokenizer is None else Path(tokenizer)
    texts, reason = choose_texts(store, None)
    if not texts.known and folder is not None and (folder / "tokenizer.json").is_file():
        texts, reason = choose_texts(store, tokenizer)
    if not texts.known:
        raise UnsupportedInputError(
            f"{store.uri}: its texts are compared, and they need a tokenizer: {reason}"
        )
    parser = _parser_of(store, folder)
    turns = masks_tell_turns(store.manifest)
    for sequence in store.iter_sequences(top_k=store.manifest.labels.fewest_entries):
        asked = sequence.for_student() if students_own else sequence
        start = last_answer_start(asked, masks_tell_turns=turns)
        yield _text_of(asked, start, texts, parser)


def _parser_of(store: LogitStore, folder: Path | None) -> PromptParser | None:
    """What takes prompts apart; None where they are plain text, or the template gives no hold."""
    try:
        render = render_of(store, folder)
        return None if render is None else PromptParser(render)
    except UnsupportedInputError:
        return None


def _text_of(
    sequence: LabeledSequence, answer_start: int, texts: TokenTexts, parser: PromptParser | None
) -> StoredText:
    prompt, answer = texts_around(sequence.token_ids_T, answer_start, texts)
    messages = parser.messages(prompt) if parser is not None and prompt else None
    if not messages:
        ids = sequence.token_ids_T[: answer_start or None].tolist()
        bare = text_of([one for one in ids if not texts.is_special(one)], texts)
        messages = [{"role": "user", "content": bare}]
    return StoredText(messages, reasoning_apart(prompt, answer)[1], sequence.finish_reason == "length")
