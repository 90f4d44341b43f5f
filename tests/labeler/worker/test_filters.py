"""Which responses are dropped or flagged, and that none goes silently."""

from dataclasses import replace

import numpy as np
import pytest

from labeler.config.loading import FiltersConfig
from labeler.prompting.segment_marks import Mark, SegmentMarks
from labeler.teacher.response_ends import EndToken, ResponseEnds
from labeler.worker.filters import filter_responses, loop_period
from labeler.worker.segmenting import Segmenter
from logitstore.records import LabeledSequence, LabelRows

END, SPACE, START_OF_ANSWER = 257, 258, 259
THINK, THOUGHT = 260, 261
ENDS = ResponseEnds(
    (EndToken(END, "<end>", ("tokenizer",)),), blank_ids=frozenset({END, SPACE, START_OF_ANSWER})
)


SEGMENTER = Segmenter(SegmentMarks((Mark("<think>", THINK), Mark("</think>", THOUGHT))), ENDS)


def rows(count):
    return LabelRows(
        logits_NK=np.zeros((count, 1), np.float32),
        token_ids_NK=np.zeros((count, 1), np.int32),
        count_N=np.ones(count, np.int32),
        logsumexp_NM=np.zeros((count, 1), np.float32),
        log_tail_mass_NM=np.full((count, 1), -1, np.float32),
        label_logprob_N=np.zeros(count, np.float32),
        label_rank_N=np.ones(count, np.int32),
    )


def response(tokens, finish_reason="stop"):
    ids = np.array([1, 2, *tokens], np.int32)
    return LabeledSequence("r", 0, ids, 2, 2, rows(len(tokens)), np.ones(len(tokens), bool), finish_reason)


def outcome_of(tokens, finish_reason="stop", **settings):
    sequence = response(tokens, finish_reason)
    written_T = np.arange(len(sequence.token_ids_T)) >= sequence.prompt_length
    sequence = replace(sequence, segments_T=SEGMENTER.segments(sequence.token_ids_T, written_T))
    outcome = filter_responses([sequence], FiltersConfig(**settings), SEGMENTER)
    flags = outcome.kept[0].flags if outcome.kept else None
    return flags, [kind for _, kind, _ in outcome.dropped], dict(outcome.counts)


def test_a_good_response_passes_untouched():
    assert outcome_of([5, 6, 7, END]) == ((), [], {})


@pytest.mark.parametrize(
    ("action", "expected"), [("flag", (("truncated",), [])), ("drop", (None, ["truncated"]))]
)
def test_a_truncated_response_is_flagged_or_dropped(action, expected):
    flags, dropped, counts = outcome_of([5, 6], "length", truncated=action)
    assert (flags, dropped) == expected
    assert counts == {"truncated": 1}


def test_keep_looks_at_nothing():
    assert outcome_of([], "length", truncated="keep", empty="keep", repeated="keep") == ((), [], {})


@pytest.mark.parametrize("tokens", [[], [END], [SPACE, SPACE, END], [START_OF_ANSWER, SPACE]])
def test_an_empty_response_is_dropped(tokens):
    assert outcome_of(tokens) == (None, ["empty"], {"empty": 1})


@pytest.mark.parametrize(
    "tokens", [[THINK, 5, THOUGHT, END], [THINK, SPACE, THOUGHT, SPACE], [5, THOUGHT, END]]
)
def test_reasoning_without_an_answer_is_an_empty_response(tokens):
    assert outcome_of(tokens) == (None, ["empty"], {"empty": 1})


def test_a_response_that_ends_before_its_reasoning_does_is_flagged():
    assert outcome_of([THINK, 5, 6, END]) == (("no_answer",), [], {"no_answer": 1})
    assert outcome_of([THINK, 5, 6], "length") == (
        ("truncated", "no_answer"),
        [],
        {"truncated": 1, "no_answer": 1},
    )
    assert outcome_of([THINK, 5, END], no_answer="drop") == (None, ["no_answer"], {"no_answer": 1})
    assert outcome_of([THINK, 5, THOUGHT, 6, END]) == ((), [], {})


def test_too_short_and_too_long_count_text_tokens_without_the_end_marker():
    assert outcome_of([5, 6, END], min_tokens=3)[1] == ["too_short"]
    assert outcome_of([5, 6, 7, END], min_tokens=3)[1] == []
    assert outcome_of([5, 6, 7, END], max_tokens=2)[1] == ["too_long"]
    assert outcome_of([5, 6, END], max_tokens=2)[1] == []


def test_a_length_out_of_bounds_can_be_flagged_instead():
    assert outcome_of([5, END], min_tokens=2, length="flag") == (("too_short",), [], {"too_short": 1})
    assert outcome_of([5, 6, 7], max_tokens=2, length="flag") == (("too_long",), [], {"too_long": 1})


def test_a_loop_is_flagged_with_its_period():
    looping = [9, 8, 7, *[1, 2, 3] * 8]
    assert outcome_of(looping, "length", repeated_tokens=24)[0] == ("truncated", "repeated")
    assert loop_period(np.array(looping), 24) == 3
    assert loop_period(np.array(looping), 25) is None
    assert loop_period(np.array([5] * 16), 16) == 1
    assert loop_period(np.array([5] * 15), 16) is None
    assert loop_period(np.arange(64), 64) is None
    assert loop_period(np.array([1, 2, 3, 4] * 6), 24) is None, "a period of 4 goes round 6 times only"
