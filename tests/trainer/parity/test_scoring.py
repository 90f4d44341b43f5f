"""When an answer is right, and which right answers leave nothing to compare with."""

from __future__ import annotations

import re

import pytest

from logitstore.common.config_file import ConfigError
from trainer.parity.figures.gap import Routing
from trainer.parity.figures.report import routing_in_words
from trainer.parity.figures.scoring import check_reference, score_of

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
