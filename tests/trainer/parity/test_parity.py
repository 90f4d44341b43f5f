"""Student and teacher on the same questions: answers kept, scores paired, gap and routing as defined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.trainer.students import tiny_student
from trainer.__main__ import main
from trainer.parity.answer_book import AnswerBook
from trainer.parity.contamination import _Found
from trainer.parity.gap import gap_of, routing_of
from trainer.parity.records import Pair, Scored


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Options: two tiny models that differ, questions whose right answers are the teacher's, a folder."""
    words = Tokenizer(WordLevel({f"t{index}": index for index in range(64)}, unk_token="t0"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # the library's own way to set it
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", unk_token="t0")
    for seed, name in enumerate(("teacher", "student")):
        tokenizer.save_pretrained(tmp_path / name)
        tiny_student(seed=seed).save_pretrained(tmp_path / name)
    lines = [{"question": f"t{n} t{n + 1} t{n + 2}", "answer": f"t{n}"} for n in range(2, 12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "parity", "--student", f"{tmp_path}/student", "--teacher", f"{tmp_path}/teacher",
        "--tasks", f"{tmp_path}/q.jsonl", "--match", "contains", "--max-tokens", "6",
        "--out", f"{tmp_path}/out",
    ]  # fmt: skip


def test_both_answer_and_are_not_asked_again(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(places) == 2
    assert "give --labels STORE, or --unchecked" in capsys.readouterr().err
    assert main([*places, "--unchecked"]) == 0
    out, err = capsys.readouterr()
    assert "contamination was not checked" in out
    assert "student: 10 of 10 answered" in err
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 10
    for item in items:
        for role in ("teacher", "student"):
            assert item[role]["score"] == float(item["reference"] in item[role]["output"].split())
        assert 0 < item["student"]["confidence"] < 1
    (gap,) = json.loads((tmp_path / "out" / "parity.json").read_text())["gaps"].values()
    difference = [item["teacher"]["score"] - item["student"]["score"] for item in items]
    assert gap["gap"] == pytest.approx(sum(difference) / 10)
    assert (tmp_path / "out" / "routing.png").read_bytes().startswith(b"\x89PNG")
    book = tmp_path / "out" / "answers.jsonl"
    answers = book.read_bytes()
    assert answers.count(b"\n") == 20
    book.write_bytes(answers[:-30])  # as if killed while writing
    assert main([*places, "--unchecked", "--json"]) == 0
    assert book.read_bytes() == answers
    assert json.loads(capsys.readouterr().out)["gaps"][f"{tmp_path}/q.jsonl"] == gap


def test_a_cut_line_is_dropped(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "book.jsonl")
    book.add("a", {"text": "x"})
    book.close()
    with (tmp_path / "book.jsonl").open("a") as file:
        file.write('{"key": "b", "te')
    book = AnswerBook(tmp_path / "book.jsonl")
    assert (book.get("a"), book.get("b")) == ({"text": "x"}, None)
    assert (tmp_path / "book.jsonl").read_bytes().count(b"\n") == 1


def pairs_of(scores: list[tuple[float, float, float]]) -> list[Pair]:
    found = []
    for number, (teacher, student, sure) in enumerate(scores):
        name = str(number)
        found.append(
            Pair(
                name, "", "", Scored(name, "", "", "", teacher, None), Scored(name, "", "", "", student, sure)
            )
        )
    return found


def test_gap_and_routing() -> None:
    pairs = pairs_of([(1, 0, 0.1), (1, 0, 0.2), (1, 1, 0.8), (0, 1, 0.9)] * 25)
    gap = gap_of(pairs, seed=3)
    assert (gap.teacher, gap.student, gap.gap) == (0.75, 0.5, 0.25)
    # The differences 1, 1, 0, -1 have a standard deviation of 0.829 each, so their mean of 0.0829.
    assert gap.low == pytest.approx(0.25 - 1.96 * 0.0829, abs=0.02)
    assert gap.high == pytest.approx(0.25 + 1.96 * 0.0829, abs=0.02)
    assert gap_of(pairs, seed=3) == gap
    routing = routing_of(pairs)
    assert routing is not None
    assert routing.share == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert routing.quality == pytest.approx((0.5, 0.75, 1.0, 1.0, 0.75))
    assert routing.enough() == 1
    assert routing.threshold[1] == 0.2


def test_questions_met_in_training_are_found() -> None:
    shared = "how many clips did the shop sell in the months of april and may together"
    found = _Found({"a": (f"Natalia asks {shared}",), "b": (f"And {shared}",), "c": ("something else " * 8,)})
    found.compare(["a prompt of its own that nobody else has", f"Please tell me {shared} and why"])
    assert (found.num_prompts, sorted(found.all_met())) == (2, ["a", "b"])
