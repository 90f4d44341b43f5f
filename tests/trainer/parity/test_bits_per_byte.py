"""Texts in bits per byte: what a model's probabilities say of them, the same for every tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.logitstore.exchange.test_texts import CHATML, THINKING, store_of
from tests.trainer.parity.models import VOCAB_SIZE, byte_model
from tests.trainer.parity.test_model import logprob, model_of
from tests.trainer.parity.test_parity import pairs_of
from tests.trainer.students import tiny_student
from trainer.__main__ import main
from trainer.errors import NotFiniteError
from trainer.parity.figures.gap import gap_of, routing_of
from trainer.parity.figures.repetition import repetition
from trainer.parity.figures.report import routing_in_words
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.models.likelihood import bits_per_byte, num_changed
from trainer.parity.records import Item, Pair, Scored

QUESTIONS = (("Why?", "It is so."), ("And how many are there?", "Seven, in the end: 7 \u20ac."))


def item_of(question: str) -> Item:
    return Item(question, ({"role": "user", "content": question},), "")


@torch.no_grad()
def even(folder: str) -> str:
    """The model of a folder, which now finds every token as likely as any other."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.get_output_embeddings().weight.zero_()
    model.save_pretrained(folder)
    return folder


def word_model(folder: Path) -> str:
    words = Tokenizer(WordLevel({"?": 0, "It": 1, "is": 2, "so": 3, ".": 4}, unk_token="?"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the library's own way to set it
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?", unk_token="?")
    tokenizer.save_pretrained(folder)
    tiny_student(8).save_pretrained(folder)
    return str(folder)


def run(tmp_path: Path, *options: str, record: str = "out/parity.json") -> dict[str, Any]:
    assert main(["parity", *options, "--unchecked", "--quiet", "--out", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / record).read_text())


def questions(tmp_path: Path, *, with_answers: bool = True) -> str:
    lines = [{"prompt": asked, **({"answer": told} if with_answers else {})} for asked, told in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "q.jsonl")


def test_bits_are_those_of_the_models_own_probabilities(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model")
    model = model_of(name, AnswerBook(tmp_path / "book.jsonl"), batch_size=2)
    found = bits_per_byte(model, [(item_of(asked), told) for asked, told in QUESTIONS])
    for bits, (asked, told) in zip(found, QUESTIONS, strict=True):
        expected = -logprob(name, f"<|s|>{asked}", f" {told}") / math.log(2) / len(told.encode())
        assert bits == pytest.approx(expected, rel=1e-5)


def test_a_chat_model_is_asked_by_its_template_and_has_no_reasoning_to_write(tmp_path: Path) -> None:
    for template, middle in ((CHATML, ""), (THINKING, "\n\n</think>\n\n")):
        name = byte_model(tmp_path / str(len(middle)), template=template)
        model = model_of(name, AnswerBook(tmp_path / f"{len(middle)}.jsonl"))
        prompt = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
        )
        (bits,) = bits_per_byte(model, [(item_of("Why?"), "So.")])
        before = prompt.rstrip() + middle if middle else prompt
        assert bits == pytest.approx(-logprob(name, before, "So.") / math.log(2) / 3, rel=1e-5)


def test_models_of_different_tokenizers_are_counted_by_the_same_bytes(tmp_path: Path) -> None:
    """Even models: log2 of the vocabulary for each token."""
    text = "It is so."
    pairs = [(item_of("Why?"), text)]
    of_bytes = model_of(even(byte_model(tmp_path / "bytes")), AnswerBook(tmp_path / "a.jsonl"))
    of_words = model_of(even(word_model(tmp_path / "words")), AnswerBook(tmp_path / "b.jsonl"))
    assert bits_per_byte(of_bytes, pairs) == pytest.approx([math.log2(VOCAB_SIZE) * 10 / 9])
    assert bits_per_byte(of_words, pairs) == pytest.approx([3 * 4 / 9])
    assert num_changed(of_bytes, [text, "\u20ac 7"]) == 0
    assert num_changed(of_words, [text, "It is seven."]) == 1


def test_a_text_that_a_model_rules_out_has_no_bits(tmp_path: Path) -> None:
    name = byte_model(tmp_path / "model")
    model = model_of(name, AnswerBook(tmp_path / "a.jsonl"))
    pairs = [(item_of("Why?"), "So.")]
    model.loglikelihoods = lambda *_, **__: [(-math.inf, False)]  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match="gives the answer of Why\\? no probability at all"):
        bits_per_byte(model, pairs)


@pytest.mark.slow
def test_right_answers_are_compared_without_asking_for_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = byte_model(tmp_path / "teacher"), even(byte_model(tmp_path / "student", seed=1))
    options = ("--student", student, "--teacher", teacher, "--tasks", questions(tmp_path))
    record = run(tmp_path, *options, "--match", "bits_per_byte")
    printed = capsys.readouterr().out
    ((name, gap),) = record["gaps"].items()
    assert name == f"{tmp_path}/q.jsonl (bits_per_byte)"
    bytes_of = [len(told.encode()) for _, told in QUESTIONS]
    # One space before each text, all of its bytes alike.
    assert gap["student"] == pytest.approx(math.log2(VOCAB_SIZE) * (sum(bytes_of) + 2) / sum(bytes_of))
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [item["student"]["weight"] for item in items] == bytes_of
    own = [item["teacher"]["score"] * count for item, count in zip(items, bytes_of, strict=True)]
    assert gap["teacher"] == pytest.approx(sum(own) / sum(bytes_of))
    assert gap["gap"] == pytest.approx(gap["teacher"] - gap["student"])
    assert not gap["higher_is_better"]
    assert record["routing"] == {}
    assert "2 items, lower is better" in printed
    book = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(book) == 4
    assert all("logprob" in line for line in book)


@pytest.mark.slow
def test_a_judge_weighs_what_both_say_and_counts_repetition(tmp_path: Path) -> None:
    """The even model is greedy for one byte, over and over."""
    teacher, student = byte_model(tmp_path / "teacher"), even(byte_model(tmp_path / "student", seed=1))
    judge = even(byte_model(tmp_path / "judge", template=CHATML))
    options = ("--student", student, "--teacher", teacher, "--judge", judge, "--max-tokens", "12")
    tasks = ("--tasks", questions(tmp_path, with_answers=False))
    record = run(tmp_path, *options, *tasks, "--match", "judge_bits_per_byte")
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    by_name = {name.removeprefix(f"{tmp_path}/q.jsonl "): gap for name, gap in record["gaps"].items()}
    assert sorted(by_name) == ["(judge_bits_per_byte)", "(repetition)"]
    for item in items:
        for role in ("teacher", "student"):
            said = item[role]
            if "(repetition)" in item["task"]:
                assert said["score"] == repetition(said["output"])
            else:
                num_tokens = len(said["output"].encode())
                assert said["weight"] == num_tokens
                assert said["score"] == pytest.approx(math.log2(VOCAB_SIZE), rel=1e-5)


def test_a_store_has_no_probabilities_of_right_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_of(tmp_path / "labels", [("Why?", " So.<|e|>")], None)
    student = byte_model(tmp_path / "student")
    given = [
        "parity",
        "--student",
        student,
        "--teacher",
        f"{tmp_path}/labels",
        "--tasks",
        questions(tmp_path),
    ]
    assert main([*given, "--match", "bits_per_byte", "--out", f"{tmp_path}/out", "--unchecked"]) == 2
    assert "is a store, which has its own answers alone; give its model" in capsys.readouterr().err
    assert main([*given, "--match", "judge_bits_per_byte", "--out", f"{tmp_path}/out", "--unchecked"]) == 2
    assert "need --judge MODEL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c d e f g", 0.0),
        ("the cat sat", 0.0),
        ("no no no no no no", 1 - 1 / 3),
        ("one two three four one two three four", 1 - 4 / 5),
        ("\u4f60\u597d\u4f60\u597d\u4f60\u597d\u4f60", 1 - 2 / 4),
        ("......", 1 - 1 / 3),
    ],
)
def test_repetition_is_the_share_of_four_words_met_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def weighed(scores: list[tuple[float, float, float, float]]) -> list[Pair]:
    """Of (teacher's bits, student's bits, student's confidence, bytes of both)."""
    return [
        Pair(
            str(place), "", "",
            Scored(str(place), "", "", "", teacher, None, num_bytes),
            Scored(str(place), "", "", "", student, sure, num_bytes),
        )
        for place, (teacher, student, sure, num_bytes) in enumerate(scores)
    ]  # fmt: skip


def test_lower_is_better_in_the_gap_and_in_routing() -> None:
    pairs = weighed([(1.0, 4.0, 0.1, 30.0), (1.0, 1.0, 0.9, 10.0)])
    gap = gap_of(pairs, seed=0, higher_is_better=False)
    assert (gap.teacher, gap.student, gap.gap) == (1.0, 3.25, -2.25)
    assert (gap.low, gap.high) == (-3.0, 0.0)
    routing = routing_of(pairs, higher_is_better=False)
    assert routing is not None
    assert routing.quality == pytest.approx((3.25, 1.0, 1.0))
    assert (routing.enough(), routing.is_student_enough()) == (1, False)
    assert routing_in_words(routing).startswith("routing: 50% of requests to the teacher")
    better = routing_of(weighed([(2.0, 1.0, 0.1, 1.0), (2.0, 1.5, 0.9, 1.0)]), higher_is_better=False)
    assert better is not None
    assert better.is_student_enough()
    assert routing_in_words(better) == "routing: the student alone is no worse than the teacher"


def test_items_of_one_weight_are_counted_as_before() -> None:
    pairs = pairs_of([(1, 0, 0.1), (0, 1, 0.4), (1, 1, 0.8)])
    gap = gap_of(pairs, seed=1)
    assert (gap.teacher, gap.student, gap.gap) == pytest.approx((2 / 3, 2 / 3, 0))
