"""Requests that the engine fails at by its own fault are made again and not rejected. No engine here."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from labeler.config.loading import LabelsConfig, SamplingConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.teacher.vllm.feed import RequestFeed
from labeler.teacher.vllm.requests import MOST_FAILURES, EngineLimits, Requests, Work

PROMPT = TokenizedPrompt("r", np.arange(3, dtype=np.int32), np.arange(3, 8, dtype=np.int32), 3)
LIMITS = EngineLimits(vocab_size=100, max_tokens=64, step_tokens=64, max_requests=4, max_logprobs=64)


def requests() -> Requests:
    return Requests(LabelsConfig(), SamplingConfig(), None, LIMITS, (), keeps_arrays=True)


def failed(message: str | None) -> Any:
    """A request's last output as vLLM gives it where the engine failed; 0.33 adds the error."""
    output = SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error", stop_reason=None)])
    if message is not None:
        output.error = SimpleNamespace(code="kv_load", message=message, retryable=True)
    return output


@pytest.mark.parametrize("message", [None, "the KV cache could not be loaded"])
def test_a_request_that_the_engine_failed_at_is_made_again(message: str | None) -> None:
    (work,) = requests().works_of(PROMPT)
    for count in range(1, MOST_FAILURES + 1):
        result = requests().result(work, failed(message))
        assert isinstance(result, Work)
        assert (result.num_failures, result.prompt, result.stage) == (count, PROMPT, "score")
        work = result
    error = requests().result(work, failed(message))
    assert isinstance(error, PromptError)
    assert error.kind == "engine_error"
    assert f"failed at it {MOST_FAILURES + 1} times ({message or 'it does not say why'})" in error.reason


class FailingEngine:
    """Refuses the first `num_failures` requests."""

    def __init__(self, num_failures: int, error: Exception) -> None:
        self.num_failures, self.error, self.taken = num_failures, error, 0

    def add_request(self, *_: Any) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise self.error
        self.taken += 1


def fed(engine: FailingEngine) -> tuple[list[PromptError], dict[str, Work]]:
    running: dict[str, Work] = {}
    feed = RequestFeed(engine, None)
    return list(feed.hand_over(requests(), iter([PROMPT]), deque(), running)), running


def test_a_retryable_refusal_is_no_reject() -> None:
    retryable = pytest.importorskip("vllm.exceptions").RetryableRequestError
    engine = FailingEngine(2, retryable("busy"))
    errors, running = fed(engine)
    assert (errors, len(running), engine.taken) == ([], 1, 1)
    errors, running = fed(FailingEngine(MOST_FAILURES + 1, retryable("busy")))
    assert [error.kind for error in errors] == ["engine_error"]
    assert not running


def test_a_client_error_is_a_reject_and_any_other_the_engines_death() -> None:
    exceptions = pytest.importorskip("vllm.exceptions")
    errors, _ = fed(FailingEngine(1, exceptions.VLLMValidationError("too long")))
    assert [(error.kind, error.reason) for error in errors] == [("bad_prompt", "vLLM refuses it: too long")]
    with pytest.raises(Exception, match=r"the engine died \(RuntimeError: lost"):
        fed(FailingEngine(1, RuntimeError("lost")))


class DyingEngine(FailingEngine):
    """Takes requests and fails at its first step."""

    def __init__(self) -> None:
        super().__init__(0, RuntimeError())

    def step(self) -> list[Any]:
        raise MemoryError("no memory for the logits")


def test_an_engine_that_failed_or_was_closed_takes_nothing_more() -> None:
    pytest.importorskip("vllm.exceptions")
    feed = RequestFeed(DyingEngine(), None)
    with pytest.raises(TeacherDiedError, match=r"the engine died \(MemoryError: no memory for the logits\)"):
        list(feed.run(requests(), iter([PROMPT]), deque()))
    feed.end("it was closed")
    with pytest.raises(TeacherDiedError, match=r"gone \(MemoryError: no memory .*start a new teacher"):
        list(feed.run(requests(), iter([PROMPT]), deque()))
    closed = RequestFeed(FailingEngine(0, RuntimeError()), None)
    closed.end("it was closed")
    with pytest.raises(TeacherDiedError, match=r"gone \(it was closed\)"):
        list(closed.run(requests(), iter([PROMPT]), deque()))
