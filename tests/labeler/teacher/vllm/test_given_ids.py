"""Rows at given ids from the real engine.

Shape legend: N label rows, K ids of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.labels import agreement
from labeler.config.loading import TeacherConfig
from labeler.errors import PromptError
from labeler.records import TokenizedPrompt
from labeler.teacher import known_vllm
from labeler.teacher.vllm.teacher import VllmTeacher
from tests.labeler import engines
from tests.labeler.teacher.vllm.v2_steps import V2Steps

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

GIVEN = engines.SCORE.model_copy(update={"given": "first-teacher", "top_k": 16})


def with_ids(prompts: list[TokenizedPrompt], vocab_size: int) -> list[TokenizedPrompt]:
    """Other ids for every row: likely and unlikely ones, the actual token in some, fewer in every third."""
    rng = np.random.default_rng(0)
    given = []
    for prompt in prompts:
        num_rows = prompt.num_tokens - prompt.label_start
        ids_NK = np.stack([rng.choice(vocab_size, 16, replace=False) for _ in range(num_rows)])
        ids_NK[1::3, 5:] = -1
        given.append(replace(prompt, given_ids_NK=ids_NK.astype(np.int32)))
    return given


def assert_rows_are_those_of_transformers(teacher: VllmTeacher, prompts: list[TokenizedPrompt]) -> None:
    found = engines.labeled(teacher, prompts)
    for prompt in prompts:
        item, given_NK = found[prompt.record_id, 0], prompt.given_ids_NK
        assert given_NK is not None
        logits_NV = agreement.reference_logits(engines.reference_model(), item)
        rows = item.rows
        assert rows.num_rows == len(given_NK)
        for row, logits_V in enumerate(logits_NV):
            ids = given_NK[row][given_NK[row] >= 0]
            stored = rows.token_ids_NK[row, : rows.count_N[row]]
            assert sorted(stored.tolist()) == sorted(ids.tolist())
            assert np.abs(rows.logits_NK[row, : len(ids)] - logits_V[stored]).max() < 1e-2
            for index, temperature in enumerate(GIVEN.temperatures):
                whole = np.logaddexp.reduce(logits_V / temperature)
                outside = np.logaddexp.reduce(np.delete(logits_V, ids) / temperature) - whole
                assert rows.logsumexp_NM[row, index] == pytest.approx(whole, abs=1e-3)
                assert rows.log_tail_mass_NM[row, index] == pytest.approx(outside, abs=1e-4)


def test_rows_at_given_ids_are_those_of_transformers() -> None:
    teacher = engines.score_teacher()
    teacher.change_labels(GIVEN)
    assert teacher._self_test() is None
    prompts = with_ids(engines.text_prompts()[:4], teacher.describe().vocab_size)
    assert_rows_are_those_of_transformers(teacher, prompts)


def test_prompts_in_pieces_beside_others_get_their_own_ids() -> None:
    teacher: Any = engines.stressed_teacher()
    teacher.change_labels(GIVEN, engines.GREEDY_SAMPLING)
    try:
        texts = with_ids(engines.text_prompts(), teacher.describe().vocab_size)
        assert max(prompt.num_tokens for prompt in texts) > engines.STRESS_ARGS["max_num_batched_tokens"]
        responses = [replace(one, label_start=30, given_ids_NK=one.given_ids_NK[29:]) for one in texts[1:2]]  # type: ignore[index]
        assert_rows_are_those_of_transformers(teacher, [texts[0], *responses, *texts[2:6]])
    finally:
        teacher.change_labels(engines.GENERATE, engines.GREEDY_SAMPLING)


def test_ids_that_are_not_there_or_not_wanted_are_refused() -> None:
    teacher = engines.score_teacher()
    (plain,) = engines.text_prompts()[:1]
    (given,) = with_ids([plain], teacher.describe().vocab_size)
    (refused,) = teacher.label([given])
    assert isinstance(refused, PromptError)
    assert (refused.kind, "came with ids" in refused.reason) == ("no_given_ids", True)
    teacher.change_labels(GIVEN)
    assert given.given_ids_NK is not None
    beyond_NK = given.given_ids_NK.copy()
    beyond_NK[2, 1] = teacher.describe().vocab_size
    wrong = [replace(given, given_ids_NK=ids) for ids in (beyond_NK, given.given_ids_NK[1:])]
    errors = list(teacher.label([plain, *wrong]))
    assert all(isinstance(error, PromptError) and error.kind == "no_given_ids" for error in errors)
    for error, word in zip(errors, ("without", "outside", "shape"), strict=True):
        assert word in str(error)
    # An engine whose capture gives ids goes back to the likeliest ones.
    again = engines.labeled(engines.score_teacher(), [plain])[plain.record_id, 0]
    assert (again.rows.count_N == engines.SCORE.top_k).all()


def test_a_vllm_that_scores_prompts_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [known_vllm.given_refusal(runner) for runner in known_vllm.RUNNERS] == [None, None]
    monkeypatch.setattr(known_vllm, "WATCHED_SOURCES", {"v1": "0" * 64, "v2": "0" * 64})
    config = TeacherConfig(model=str(engines.MODEL))
    with pytest.raises(RuntimeError, match=r"labels\.given needs.*_get_prompt_logprobs_dict.*is not the one"):
        VllmTeacher(config, GIVEN, engines.SAMPLING)


def test_the_v2_runners_worker_gets_the_ids_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three steps of two prompts."""
    steps = V2Steps(True, monkeypatch, prompt_length=3)
    finished: dict[str, Any] = {}
    for name in "ab":
        steps.add(name)
    for spans in ({"a": (0, 4)}, {"a": (4, 9), "b": (0, 2)}, {"b": (2, 9)}):
        finished |= steps.step(spans)
    for name in "ab":
        found, given_NK = steps.rows(finished[name], first=2), steps.given[name]
        for row, logits_V in enumerate(steps.logits[name][2:8].astype(np.float64)):
            assert sorted(found.token_ids_NK[row].tolist()) == sorted(given_NK[row].tolist())
            np.testing.assert_allclose(found.logits_NK[row], logits_V[found.token_ids_NK[row]], atol=1e-6)
            outside = np.logaddexp.reduce(np.delete(logits_V, given_NK[row])) - np.logaddexp.reduce(logits_V)
            assert found.log_tail_mass_NM[row, 0] == pytest.approx(outside, abs=1e-5)
    steps.worker.remove_request("a")
    assert list(steps.worker.in_progress_prompt_logprobs) == ["b"]
