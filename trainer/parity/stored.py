"""Texts of stores: a teacher's answers, and the prompts that a student was trained on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.contamination.prompt_texts import words_of
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.texts import export_texts
from logitstore.store import LogitStore
from trainer.parity.records import Answer, Item


def is_store(place: str) -> bool:
    return "://" in place or Path(place, "manifest.json").is_file()


def stored_answers(uri: str, items: Sequence[Item]) -> dict[str, Answer]:
    """What the teacher answered, by item; those that the store has no answer to are left out.

    An item is known by the words of its last question. Raises ConfigError for a store of given responses.
    """
    store = LogitStore.open(uri)
    if store.manifest.labels.mode != "generate":
        raise ConfigError(
            f"--teacher {uri}: its responses were given (labels.mode = {store.manifest.labels.mode!r}), so "
            "they are not the teacher's; give a store whose responses it generated, or its model"
        )
    answers: dict[tuple[str, ...], Answer] = {}
    for record in _texts(store):
        question, text = _question(record), record.get("completion")
        if text is None:
            text = record["messages"][-1]["content"]
        answer = Answer(text, None, None, record["finish_reason"] == "length")
        answers.setdefault(tuple(words_of(question)), answer)
    found = {item.item_id: answers.get(tuple(words_of(item.question))) for item in items}
    return {item_id: answer for item_id, answer in found.items() if answer is not None}


def prompts_of(uri: str) -> Iterator[str]:
    """What users asked in a store's sequences; whole prompts where no chat template tells."""
    for record in _texts(LogitStore.open(uri)):
        yield _question(record)


def _question(record: dict[str, Any]) -> str:
    if "messages" not in record:
        return record["prompt"]
    users = [message["content"] for message in record["messages"] if message["role"] == "user"]
    return users[-1] if users else ""


def _texts(store: LogitStore) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="penumbra-parity-") as folder:
        path = Path(folder, "texts.jsonl")
        try:
            _, left_out = export_texts(store, path, "messages")
        except UnsupportedInputError:
            left_out = 1
        if left_out:
            export_texts(store, path, "prompt-completion")
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
