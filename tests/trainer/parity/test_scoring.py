"""When an answer is right, and which right answers leave nothing to compare with."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from logitstore.common.config_file import ConfigError
from trainer.parity.figures import scoring
from trainer.parity.figures.gap import Routing
from trainer.parity.figures.report import routing_in_words
from trainer.parity.figures.scoring import check_reference, score_of
from trainer.parity.items import read_items
from trainer.parity.models.answer_book import AnswerBook

NUMBER = re.compile(r"#### (-?\d+)")


@pytest.mark.parametrize(
    ("kind", "output", "reference", "score"),
    [
        ("exact", " Paris. ", "paris", 1.0),
        ("exact", "It is Paris", "Paris", 0.0),
        ("exact", "1,200", "1200", 1.0),
        ("exact", "1,200 dollars", "1200 Dollars", 1.0),
        ("exact", "1,2,3", "123", 0.0),
        ("exact", ".5", "5", 0.0),
        ("exact", "-5", "\u22125", 1.0),
        ("contains", "It is Paris, of course", "Paris", 1.0),
        ("contains", "London", "Paris", 0.0),
        ("contains", "the Parisian way", "Paris", 0.0),
        ("contains", "1,200 dollars", "1,200", 1.0),
        ("contains", "about 12,345,678 people", "12345678", 1.0),
        ("contains", "It is 1200 dollars", "1,200", 1.0),
        ("contains", "It is 115", "15", 0.0),
        ("contains", "It is 15.5", "15", 0.0),
        ("contains", "It is 0.15", "15", 0.0),
        ("contains", "It is -15", "15", 0.0),
        ("contains", "$1,200.50", "1200", 0.0),
        ("contains", "It is 15.", "15", 1.0),
        ("contains", "pages (3,15) and 1-15", "15", 1.0),
        ("contains", "written in C++.", "c++", 1.0),
        ("contains", "\u7b54\u6848\u662f\u5df4\u9ece\u5e02", "\u5df4\u9ece", 1.0),
        ("regex", "2 and 3: #### 4, no: #### 5", "so #### 5", 1.0),
        ("regex", "#### 4", "so #### 5", 0.0),
        ("regex", "5", "so #### 5", 0.0),
        ("regex", "#### 5", "5", 1.0),
    ],
)
def test_when_an_answer_is_right(kind: str, output: str, reference: str, score: float) -> None:
    assert score_of(kind, output, reference, NUMBER) == score  # type: ignore[arg-type]  # one of the kinds


def test_a_meeting_without_text_does_not_count() -> None:
    digits = re.compile(r"\d*")
    assert score_of("regex", "It is 4, I think", "5 in all", digits) == 0.0
    assert score_of("regex", "It is 5, I think", "5 in all", digits) == 1.0


@pytest.mark.parametrize("kind", ["exact", "contains", "regex"])
def test_an_answer_of_punctuation_alone_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^q, line 3: of the answer '\?!' nothing is left"):
        check_reference(kind, "?!", NUMBER, "q, line 3")  # type: ignore[arg-type]  # one of the kinds
    for asked in ("judge", "bits_per_byte", "judge_bits_per_byte"):
        check_reference(asked, "?!", None, "q, line 3")
    check_reference(kind, "5", NUMBER, "q, line 3")  # type: ignore[arg-type]  # one of the kinds


def test_items_that_none_answers_right_say_nothing_of_routing() -> None:
    """It was said that the student alone scores no less than the teacher."""
    none_right = Routing((0.0, 0.5, 1.0), (0.0, 0.0, 0.0), (0.1, 0.5, None))
    assert routing_in_words(none_right).startswith("routing: the mean score is 0.0000 whoever answers")
    better_alone = Routing((0.0, 0.5, 1.0), (0.4, 0.3, 0.2), (0.1, 0.5, None))
    assert routing_in_words(better_alone) == "routing: the student alone is no worse than the teacher"


def test_a_pattern_that_goes_back_for_ever_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hung after all answers had been made, without a word."""
    monkeypatch.setattr(scoring, "PATTERN_SEC", 0.05)
    pattern, begun = re.compile(r"(a+)+$"), time.process_time()
    with pytest.raises(ConfigError, match=r"--regex '\(a\+\)\+\$' takes more than 0.05 s for one text"):
        score_of("regex", "a" * 60 + "b", "a", pattern)
    assert time.process_time() - begun < 20
    assert score_of("regex", "aa", "aa", pattern) == 1.0, "the next text has its own time"


def test_a_pattern_is_not_ended_by_what_other_threads_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer counts the time of all threads of the process."""
    monkeypatch.setattr(scoring, "PATTERN_SEC", 0.05)
    # More than 0.05 s of the process before the match, of which this thread has next to none.
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    slow = re.compile(r"(a+)+$")
    assert score_of("regex", "a" * 22 + "b", "a", slow) == 0.0


def test_a_pattern_is_matched_on_a_system_without_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none; the comparison ended with AttributeError after all answers had been made."""
    monkeypatch.setattr(scoring, "signal", SimpleNamespace(SIGINT=signal.SIGINT, signal=signal.signal))
    assert score_of("regex", "#### 5", "so #### 5", NUMBER) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (18.0, "18"),
        (18, "18"),
        (10**400, "1" + "0" * 400),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e21, "1" + "0" * 21),
        (2.50, "2.5"),
        ("18.0", "18.0"),
    ],
)
def test_a_number_is_compared_as_a_model_writes_it(tmp_path: Path, answer: Any, reference: str) -> None:
    """A column of numbers with one missing is of 18.0, which no answer of 18 met."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "How many?", "answer": answer}))
    (item,) = read_items(str(tmp_path / "tasks.jsonl"), None, None, None)
    assert item.reference == reference


@pytest.mark.parametrize("answer", [["Paris", "Paris, France"], True, {"value": "Paris"}, math.nan, math.inf])
def test_an_answer_that_is_no_text_is_named(tmp_path: Path, answer: Any) -> None:
    """NaN was an answer to compare with, and of the others none was said to be there."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "Where?", "answer": answer}))
    with pytest.raises(ConfigError, match="must be a text or a number") as refused:
        read_items(str(tmp_path / "tasks.jsonl"), None, None, None)
    assert f"the answer is {answer!r}, " in str(refused.value)


def test_records_of_several_files_are_told_apart(tmp_path: Path) -> None:
    """Two of line 1 were refused for an id that neither has."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Paris"}))
    (one,) = read_items(str(tmp_path / "a.jsonl"), None, None, None)
    assert one.item_id == "line 1"
    both = read_items(str(tmp_path), None, None, None)
    assert [item.item_id for item in both] == ["a.jsonl:1", "b.jsonl:1"]


def test_a_question_of_blanks_is_none(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "  ", "answer": "Paris"}))
    with pytest.raises(ConfigError, match="no prompt in"):
        read_items(str(tmp_path / "tasks.jsonl"), None, None, None)


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ((0.99991, 0.99992, 0.999964, None), "0.99996"),
        ((0.1, 0.2, 0.5, None), "0.5"),
        ((0.1, 0.2, 1.0, None), "1"),
    ],
)
def test_a_threshold_parts_the_requests_as_the_figures_do(
    thresholds: tuple[float | None, ...], said: str
) -> None:
    """Rounded to three digits, 0.99996 was 1, below which all requests are."""
    routing = Routing((0.0, 0.25, 0.5, 1.0), (0.0, 0.5, 1.0, 1.0), thresholds)
    assert f"those with a confidence below {said}, come" in routing_in_words(routing)


@pytest.mark.parametrize("line", ['{"key', "[1]", "{}", "", '"key"'])
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    """It ended the command with a traceback."""
    (tmp_path / "answers.jsonl").write_text(f'{{"key": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(
        ConfigError, match=r"answers.jsonl:2: .* is no answer that was kept here; remove the line"
    ):
        AnswerBook(tmp_path / "answers.jsonl")
