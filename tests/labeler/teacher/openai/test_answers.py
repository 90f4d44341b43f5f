"""Answers taken apart: what is not an answer to the question is refused, never guessed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from openai.types import Completion
from openai.types.completion_choice import Logprobs

from labeler.teacher.openai.answers import read_completion
from labeler.teacher.openai.calls import MalformedAnswerError, RefusedError

ANSWER = {
    "id": "x",
    "object": "text_completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "text": "ab",
            "finish_reason": "length",
            "prompt_token_ids": [5, 6],
            "token_ids": [7, 8],
            "prompt_logprobs": [
                None,
                {
                    "6": {"logprob": -3.0, "rank": 9},
                    "1": {"logprob": -0.5, "rank": 1},
                    "2": {"logprob": -1.5, "rank": 2},
                },
            ],
            "logprobs": {
                "tokens": ["token_id:7", "token_id:8"],
                "token_logprobs": [-0.25, -4.0],
                "top_logprobs": [
                    {"token_id:7": -0.25, "token_id:3": -2.0},
                    {"token_id:8": -4.0, "token_id:1": -0.5, "token_id:2": -1.0},
                ],
                "text_offset": [0, 1],
            },
        }
    ],
}


def read(**changes: Any) -> Any:
    answer = copy.deepcopy(ANSWER)
    answer["choices"][0].update(changes)
    built = Completion.model_validate(answer)
    return read_completion(built, [5, 6], 2, with_given=True, with_written=True)


def test_rows_have_the_actual_token_first_and_the_largest_after_it() -> None:
    found = read()
    assert found.given.token_ids_NC.tolist() == [[6, 1, 2]]
    assert found.given.values_NC.tolist() == [[-3.0, -0.5, -1.5]]
    assert found.given.ranks_N.tolist() == [9]
    assert found.written.token_ids_NC.tolist() == [[7, 7, 3], [8, 1, 2]]
    assert found.written.ranks_N.tolist() == [1, 3]
    assert (found.written_ids, found.finish_reason) == ((7, 8), "length")


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": [5, 7]},
        {"prompt_token_ids": None},
        {"token_ids": None},
        {"token_ids": [7]},
        {"prompt_logprobs": [None]},
        {"prompt_logprobs": [None, {"1": {"logprob": -1.0, "rank": 1}}]},
        {"prompt_logprobs": [None, {"6": {"logprob": "x", "rank": 1}}]},
        {"prompt_logprobs": [None, {"6": {"logprob": -(10**400), "rank": 1}}]},
        {"prompt_logprobs": [None, {"6": {"logprob": -1.0, "rank": float("inf")}}]},
        {"logprobs": None},
        {"logprobs": {**ANSWER["choices"][0]["logprobs"], "top_logprobs": [{" a": -1.0}, {" b": -1.0}]}},
    ],
    ids=range(11),
)
def test_what_is_no_answer_is_asked_again(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswerError):
        read(**changes)


@pytest.mark.parametrize("logprob", [None, "x", -(10**400)])
def test_a_written_row_with_a_logprob_that_is_none_is_asked_again(logprob: Any) -> None:
    """The client makes its objects of an answer without a look at their types."""
    logprobs = copy.deepcopy(ANSWER["choices"][0]["logprobs"])
    logprobs["top_logprobs"][0]["token_id:3"] = logprob
    built = Completion.model_validate(ANSWER)
    built.choices[0].logprobs = Logprobs.model_construct(**logprobs)
    with pytest.raises(MalformedAnswerError, match=r"a logprob is .*, and must be a number"):
        read_completion(built, [5, 6], 2, with_given=True, with_written=True)


def test_a_filter_of_the_server_is_a_refusal() -> None:
    with pytest.raises(RefusedError) as caught:
        read(finish_reason="content_filter")
    assert caught.value.kind == "content_filter"
