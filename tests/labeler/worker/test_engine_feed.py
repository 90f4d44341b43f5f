"""Units through one engine: the next flows in while the last one ends, and each gets its own results.

The teacher here is an engine with a few places and nothing else; the real one takes late work as well
(`test_teacher_conformance.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from labeler.errors import EngineDiedError, PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.worker.engine_feed import EngineFeed, FedUnit
from logitstore.records import LabeledSequence

PLACES = 2


class SmallEngine:
    """Takes prompts while it has places; "bad" ones come back, "fatal" ones end it, "bug" is one of ours."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, ...]] = []
        """Records in the engine at each step."""
        self.gate = threading.Semaphore(0)
        """One step each."""

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        source, inside = iter(prompts), list[TokenizedPrompt]()
        while True:
            while len(inside) < PLACES and (prompt := next(source, None)) is not None:
                inside.append(prompt)
            if not inside:
                return
            self.steps.append(tuple(prompt.record_id for prompt in inside))
            self.gate.acquire()
            prompt = inside.pop(0)
            if prompt.record_id.startswith("fatal"):
                raise TeacherDiedError("it died")
            if prompt.record_id.startswith("bug"):
                raise ZeroDivisionError
            if prompt.record_id.startswith("bad"):
                yield PromptError(prompt.record_id, "not good", "bad_prompt")
            else:
                yield sequence(prompt.record_id)

    def close(self) -> None:
        self.steps.append(("closed",))


def sequence(record_id: str) -> LabeledSequence:
    nothing: Any = None
    return LabeledSequence(record_id, 0, np.arange(3, dtype=np.int32), 1, 1, nothing, nothing, "scored")


def unit(lease_id: int, *names: str) -> FedUnit:
    ids = np.arange(3, dtype=np.int32)
    return FedUnit.of(lease_id, [TokenizedPrompt(name, ids, ids, 3) for name in names], 1)


class Runs:
    """Units handed to a feed, each from a thread of its own as an actor's calls are."""

    def __init__(self) -> None:
        self.engine = SmallEngine()
        engine: Any = self.engine
        self.feed = EngineFeed(lambda: engine, 1, lambda _: None)
        self.outcomes: dict[int, bool | Exception] = {}
        self._threads: list[threading.Thread] = []

    def hand_over(self, *units: FedUnit) -> None:
        for one in units:
            thread = threading.Thread(target=self._run, args=(one,))
            thread.start()
            self._threads.append(thread)
            self.wait(lambda one=one: self.is_known(one))

    def is_known(self, one: FedUnit) -> bool:
        """Whether the feed has the unit, or has had it."""
        with self.feed._lock:
            waiting = any(one is other for other in self.feed._waiting)
        return waiting or one.missing == 0 or one.lease_id in self.feed.in_engine

    def _run(self, one: FedUnit) -> None:
        try:
            self.outcomes[one.lease_id] = self.feed.run(one)
        except Exception as error:  # noqa: BLE001
            self.outcomes[one.lease_id] = error

    def wait(self, what: Any) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def finish(self) -> None:
        self.engine.gate.release(1000)
        for thread in self._threads:
            thread.join(60)


def names_of(one: FedUnit) -> list[str]:
    return [item.record_id for item in one.sequences]


def test_the_next_units_prompts_take_the_room_that_the_last_ones_leave() -> None:
    runs = Runs()
    first, second = unit(0, "a1", "a2", "a3"), unit(1, "b1", "b2")
    runs.hand_over(first, second)
    runs.finish()
    assert runs.engine.steps == [("a1", "a2"), ("a2", "a3"), ("a3", "b1"), ("b1", "b2"), ("b2",)]
    assert (names_of(first), names_of(second)) == (["a1", "a2", "a3"], ["b1", "b2"])
    assert runs.outcomes == {0: True, 1: True}
    assert runs.feed.in_engine == ()


def test_a_unit_that_comes_while_the_engine_empties_joins_it() -> None:
    runs = Runs()
    first, second = unit(0, "a1", "a2"), unit(1, "b1")
    runs.hand_over(first)
    runs.wait(lambda: runs.engine.steps)
    runs.hand_over(second)
    runs.finish()
    assert ("a2", "b1") in runs.engine.steps


def test_refused_prompts_and_empty_units_are_complete_too() -> None:
    runs = Runs()
    empty, mixed = unit(0), unit(1, "bad1", "a1")
    runs.hand_over(empty, mixed)
    runs.finish()
    assert runs.outcomes == {0: True, 1: True}
    assert (names_of(mixed), [error.record_id for error in mixed.errors]) == (["a1"], ["bad1"])


def test_a_dying_engine_takes_all_units_with_it_and_names_those_that_were_inside() -> None:
    runs = Runs()
    units = [unit(0, "a1", "fatal1"), unit(1, "b1"), unit(2, "c1")]
    runs.hand_over(*units)
    runs.finish()
    for outcome in runs.outcomes.values():
        assert isinstance(outcome, EngineDiedError)
        assert outcome.culprits == (0, 1)
        assert "it died" in str(outcome)
    with pytest.raises(EngineDiedError):
        runs.feed.run(unit(3, "d1"))
    assert runs.feed.in_engine == (0, 1)


def test_an_error_of_another_kind_fails_the_units_inside_and_no_other() -> None:
    runs = Runs()
    runs.hand_over(unit(0, "bug1", "a1"), unit(1, "b1"))
    runs.finish()
    assert isinstance(runs.outcomes[0], ZeroDivisionError)
    assert runs.outcomes[1] is True


def test_a_leaving_feed_ends_what_is_inside_and_gives_back_the_rest() -> None:
    runs = Runs()
    first, second = unit(0, "a1", "a2", "a3"), unit(1, "b1")
    runs.hand_over(first, second)
    runs.wait(lambda: runs.engine.steps)
    runs.feed.leave()
    runs.finish()
    assert runs.outcomes == {0: True, 1: False}
    assert names_of(first) == ["a1", "a2", "a3"]
    runs.feed.close()
    assert runs.engine.steps[-1] == ("closed",)


def test_the_units_times_add_up_to_the_engines() -> None:
    runs = Runs()
    units = [unit(0, "a1", "a2"), unit(1, "b1", "b2")]
    began = time.perf_counter()
    runs.hand_over(*units)
    runs.wait(lambda: runs.engine.steps)
    time.sleep(0.05)
    runs.finish()
    took = time.perf_counter() - began
    assert 0.05 <= sum(one.engine_sec for one in units) <= took
