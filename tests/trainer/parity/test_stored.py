"""What a store says: a teacher's answers by all that was asked, and the prompts a student was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from transformers import PreTrainedTokenizerFast

from logitstore.common.config_file import ConfigError
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.chat_text import renderer
from tests.logitstore.exchange.test_texts import (
    CHATML,
    THINKING,
    byte_tokenizer,
    store_of,
    with_own_prompts,
)
from tests.trainer.stores import make_store
from trainer.parity.contamination import contamination_of
from trainer.parity.records import Item
from trainer.parity.stored import prompts_of, stored_answers
from trainer.run.reading.texts import text_store
from trainer.run.settings.data import TextSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def messages(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    talk = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return talk if system is None else [{"role": "system", "content": system}, *talk]


def prompt(template: str, *turns: str, system: str | None = None) -> str:
    return renderer(template, {}, {})(messages(*turns, system=system), True)


def item(name: str, *turns: str, system: str | None = None) -> Item:
    return Item(name, tuple(messages(*turns, system=system)), "x")


def test_an_item_is_known_by_all_its_messages(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    asked = [
        (prompt(CHATML, "2+2 = ?"), "4<|e|>"),
        (prompt(CHATML, "2-2 = ?"), "0<|e|>"),
        (prompt(CHATML, "First: 1.", "Yes.", "Why?"), "Because of 1.<|e|>"),
        (prompt(CHATML, "First: 2.", "Yes.", "Why?"), "Because of 2.<|e|>"),
        (prompt(CHATML, "Hello?", system="Be loud."), "HELLO<|e|>"),
        (prompt(CHATML, "Hello?", system="Be short."), "Hi<|e|>"),
        ("Not of the template", " at all"),
    ]
    store_of(tmp_path / "store", asked, CHATML)
    found = stored_answers(
        uri,
        [
            item("minus", "2-2  =\n?"),
            item("second", "First: 2.", "Yes.", "Why?"),
            item("alone", "Why?"),
            item("short", "Hello?", system="Be short."),
            item("any", "Hello?"),
            item("plain", "Not of the template"),
            item("case", "not of the template"),
        ],
    )
    assert {name: answer.text.strip() for name, answer in found.items()} == {
        "minus": "0",
        "second": "Because of 2.",
        "short": "Hi",
        "any": "HELLO",
        "plain": "at all",
    }


def test_a_prompt_of_another_form_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    asked = [(prompt(THINKING, "Why?"), "Hm.\n</think>\n\nSo.<|e|>"), ("Of no template", " so")]
    store_of(tmp_path / "store", asked, THINKING)
    answers = stored_answers(str(tmp_path / "store"), [item("a", "Why?"), item("b", "Of no template")])
    assert [answers[name].text.strip() for name in ("a", "b")] == ["So.", "so"]


def test_given_responses_are_no_answers(tmp_path: Path) -> None:
    make_store(tmp_path / "store", (3,))
    with pytest.raises(ConfigError, match="its responses were given"):
        stored_answers(str(tmp_path / "store"), [])


LONG = "how many clips did the shop sell in the months of april and may together with june"


def test_a_student_is_asked_its_own_prompt(tmp_path: Path) -> None:
    base = store_of(tmp_path / "base", [(prompt(CHATML, f"Why? Hint: {LONG}"), "So.<|e|>")], CHATML)
    store = with_own_prompts(tmp_path / "own", base, [prompt(CHATML, "Why?")])
    assert stored_answers(store.uri, [item("a", "Why?")])["a"].text == "So."
    assert list(prompts_of(store.uri, "")) == [f"Why? Hint: {LONG}", "Why?"]


def test_every_turn_of_a_user_is_a_training_prompt(tmp_path: Path) -> None:
    asked = [(prompt(CHATML, f"Say {LONG}", "So many.", "And why is that?"), "So.<|e|>")]
    store_of(tmp_path / "store", asked, CHATML)
    found = contamination_of({"a": (f"Tell me {LONG}",), "b": ("And?",)}, [str(tmp_path / "store")], "")
    assert list(found.met) == ["a"]


def test_a_short_question_is_met_without_what_its_task_writes_around_it(tmp_path: Path) -> None:
    store_of(
        tmp_path / "store", [(prompt(CHATML, "What is the tallest mountain of Asia?"), "It.<|e|>")], CHATML
    )
    question = "What is the tallest mountain of Asia?"
    rendered = f"Question: {question}\nAnswer:"
    uris = [str(tmp_path / "store")]
    assert list(contamination_of({"a": (rendered, question)}, uris, "").met) == ["a"]


@pytest.mark.parametrize(
    ("kind", "record", "wanted"),
    [
        ("text", {"text": f"A text that says {LONG}"}, f"A text that says {LONG}"),
        ("prompt_response", {"prompt": "Say it.", "response": "It."}, "Say it."),
    ],
)
def test_texts_without_a_teacher_are_read_by_the_students_tokenizer(
    tmp_path: Path, kind: Literal["text", "prompt_response"], record: dict[str, str], wanted: str
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|e|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "texts.jsonl").write_text(json.dumps(record) + "\n")
    source = TextSource(uri=str(tmp_path / "texts.jsonl"), kind=kind)
    uri = str(text_store(source, tokenizer, tmp_path / "texts", vocab_size=258))
    assert list(prompts_of(uri, str(tmp_path / "student"))) == [wanted]
    with pytest.raises(UnsupportedInputError, match="its texts are compared, and they need a tokenizer"):
        list(prompts_of(uri, str(tmp_path / "elsewhere")))
