"""Requests that the engine throws out of its cache: no row is lost or doubled, and they are counted.

Preemption of answers in the real engine is in `test_vllm_teacher.py`.

Shape legend: N label rows.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from labeler.records import TokenizedPrompt
from labeler.teacher.vllm.capture.installing import watch_preemptions
from labeler.teacher.vllm.feed import Preemptions
from tests.labeler import engines
from tests.labeler.teacher.vllm.v2_steps import V2Steps


def long_prompts() -> list[TokenizedPrompt]:
    """Four texts of about 200 tokens, of which the engine's cache holds fewer than two."""
    tokens = np.concatenate([engines.encode(text) for text in engines.TEXTS])
    empty = np.empty(0, np.int32)
    return [
        TokenizedPrompt(f"long-{index}", empty, np.roll(tokens, -30 * index)[: 190 + 3 * index], 1)
        for index in range(4)
    ]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_given", [False, True])
def test_scored_prompts_that_are_thrown_out_halfway_keep_their_rows(
    is_given: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts go on 24 tokens at a time, two beside each other, as the engine's own setting has it, and its
    scheduler is not asked to keep room for whole prompts; labels equal those of a roomy engine."""
    labels = engines.SCORE
    prompts = long_prompts()
    if is_given:
        labels = labels.model_copy(update={"given": "first-teacher", "top_k": 16})
        rng = np.random.default_rng(0)
        prompts = [
            replace(
                one,
                given_ids_NK=rng.permuted(np.tile(np.arange(900, dtype=np.int32), (n, 1)), axis=1)[:, :16],
            )
            for one in prompts
            for n in [one.num_tokens - 1]
        ]
    teacher: Any = engines.stressed_teacher()
    scheduler = teacher.engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler.scheduler_config, "long_prefill_token_threshold", 24)
    monkeypatch.setattr(scheduler, "scheduler_reserve_full_isl", False)
    thrown_out_at: list[int] = []
    original = scheduler._preempt_request

    def counted(request: Any, *arguments: Any, **named: Any) -> Any:
        thrown_out_at.append(request.num_computed_tokens if request.num_output_tokens == 0 else -1)
        return original(request, *arguments, **named)

    monkeypatch.setattr(scheduler, "_preempt_request", counted)
    teacher.change_labels(labels, engines.GREEDY_SAMPLING)
    try:
        with caplog.at_level(logging.WARNING, logger="labeler.teacher.vllm.feed"):
            found = engines.labeled(teacher, prompts)
    finally:
        teacher.change_labels(engines.GENERATE, engines.GREEDY_SAMPLING)
    halfway = [place for place in thrown_out_at if 24 <= place < 190]
    assert halfway, f"the cache was not small enough to test anything: {thrown_out_at}"
    assert f"thrown out and computed again ({len(thrown_out_at)})" in caplog.text
    roomy = engines.score_teacher()
    roomy.change_labels(labels)
    expected = engines.labeled(roomy, prompts)
    assert found.keys() == expected.keys()
    for key, item in found.items():
        rows, same = item.rows, expected[key].rows
        assert rows.num_rows == len(item.token_ids_T) - 1
        assert np.abs(rows.logits_NK - same.logits_NK).max() < 1e-3
        assert np.abs(rows.logsumexp_NM - same.logsumexp_NM).max() < 1e-3
        assert np.abs(rows.log_tail_mass_NM - same.log_tail_mass_NM).max() < 1e-3
        assert (rows.token_ids_NK == same.token_ids_NK).mean() > 0.99  # near ties may change places


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_given", [False, True])
def test_the_v2_runners_worker_forgets_what_it_had_of_a_request_thrown_out(
    is_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runner removes such a request with those that end, and adds it again as a new one."""
    undisturbed = V2Steps(is_given, monkeypatch)
    for name in "ab":
        undisturbed.add(name)
    expected = undisturbed.step({"a": (0, 9), "b": (0, 9)})
    steps = V2Steps(is_given, monkeypatch)
    steps.add("a")
    steps.add("b")
    assert steps.step({"a": (0, 6), "b": (0, 2)}) == {}
    steps.worker.remove_request("a")
    found = steps.step({"b": (2, 9)})
    steps.add("a")
    assert steps.step({"a": (0, 3)}) == {}
    found |= steps.step({"a": (3, 9)})
    assert found.keys() == {"a", "b"}
    for name in "ab":
        ours, theirs = steps.rows(found[name]), undisturbed.rows(expected[name])
        assert ours.num_rows == 8
        for field in ("logits_NK", "token_ids_NK", "logsumexp_NM", "log_tail_mass_NM", "label_rank_N"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)
    # After its prompt was scored and tokens were written, a request brings no rows of the prompt again.
    steps.worker.remove_request("a")
    steps.add("a")
    assert steps.step({"a": (0, 9)}, num_written=2) == {}


def test_both_runners_count_what_the_scheduler_says() -> None:
    called = []
    runner = SimpleNamespace(execute_model=lambda *arguments: called.append(arguments) or "output")
    watch_preemptions(runner)
    watch_preemptions(runner)
    for names in (None, set(), {"3"}, {"4", "7"}):
        assert runner.execute_model(SimpleNamespace(preempted_req_ids=names), "tensors") == "output"
    assert runner.penumbra_num_preempted == 3
    assert [arguments[1] for arguments in called] == ["tensors"] * 4


def test_a_runners_own_dummy_steps_pass_with_their_options() -> None:
    """vLLM's V2 runner calls the same method by keyword, for steps without a request."""
    runner = SimpleNamespace(execute_model=lambda output, tensors=None, dummy_run=False: dummy_run)
    watch_preemptions(runner)
    assert runner.execute_model(SimpleNamespace(preempted_req_ids=None), dummy_run=True) is True


def test_only_new_preemptions_are_said(caplog: pytest.LogCaptureFixture) -> None:
    said = Preemptions()
    for counts in ([0, 0], [2, 2], [2, 2], [5, 5]):
        said.say_new(counts)
    assert [record.args for record in caplog.records] == [(2,), (3,)]
    assert "max_num_seqs" in caplog.text
