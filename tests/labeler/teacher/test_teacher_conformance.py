"""What every teacher must do, asked of the fake and of the real one.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.config.teacher_settings import ApiTeacherConfig
from labeler.errors import PromptError
from labeler.records import TokenizedPrompt
from labeler.teacher.fake import FakeTeacher
from labeler.teacher.protocol import Teacher, build_teacher
from logitstore.records import LabeledSequence
from tests.labeler import engines
from tests.labeler.teacher.openai.server import KEY, SERVED
from tests.labeler.teacher.openai.stand_in import stand_in_server, write_model

FAKE = TeacherConfig(engine="fake", max_model_len=engines.MAX_MODEL_LEN)


@dataclass(frozen=True)
class Case:
    """A kind of teacher, in both modes."""

    score: Callable[[], Teacher]
    generate: Callable[[], Teacher]
    labels: LabelsConfig
    tolerance: float
    """By how much values may differ between runs of other batches."""
    scored: LabelsConfig = engines.SCORE
    capture: str = "in_engine"


def _fake(labels: LabelsConfig) -> Teacher:
    return build_teacher(FAKE, labels, engines.SAMPLING, cores=None)


CASES = {
    "fake": Case(lambda: _fake(engines.SCORE), lambda: _fake(engines.GENERATE), engines.GENERATE, 0.0),
    "vllm": Case(engines.score_teacher, engines.generate_teacher, engines.GENERATE, 1e-3),
}


@pytest.fixture(scope="module")
def openai_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A server with the fake teacher's logits; `openai/` has tests of the same teacher on vLLM's own server."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    with stand_in_server(folder) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENUMBRA_TEST_KEY", KEY)
        api = ApiTeacherConfig(base_url=url, model=SERVED, key_variable="PENUMBRA_TEST_KEY", concurrency=4)
        config = TeacherConfig(
            engine="openai", model=str(folder), max_model_len=engines.MAX_MODEL_LEN, api=api
        )
        settings = {"top_k": 20, "temperatures": (1.0,)}
        score, generate = (one.model_copy(update=settings) for one in (engines.SCORE, engines.GENERATE))
        sampling = engines.SAMPLING.model_copy(update={"stop": ()})
        teachers = [build_teacher(config, labels, sampling, cores=None) for labels in (score, generate)]
        yield Case(lambda: teachers[0], lambda: teachers[1], generate, 1e-5, score, "public_api")
        for teacher in teachers:
            teacher.close()


@pytest.fixture(
    params=[
        "fake",
        "openai",
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]),
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue("openai_case") if request.param == "openai" else CASES[request.param]


def _ids(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def _scored_prompts(count: int = 5) -> list[TokenizedPrompt]:
    rng = np.random.default_rng(3)
    return [
        TokenizedPrompt(
            f"r{index}",
            rng.integers(0, 500, 3 + index).astype(np.int32),
            rng.integers(0, 500, 10 + 7 * index).astype(np.int32),
            3 + index if index % 2 else 1,
        )
        for index in range(count)
    ]


def _assert_consistent(item: LabeledSequence, teacher: Teacher, labels: LabelsConfig) -> None:
    description, rows = teacher.describe(), item.rows
    num_rows, num_temperatures = len(item.token_ids_T) - item.label_start, len(labels.temperatures)
    assert rows.logits_NK.shape == rows.token_ids_NK.shape == (num_rows, labels.top_k)
    assert rows.logsumexp_NM.shape == rows.log_tail_mass_NM.shape == (num_rows, num_temperatures)
    assert item.loss_mask_N.shape == (num_rows,)
    dtypes = [array.dtype for array in (rows.logits_NK, rows.token_ids_NK, rows.count_N, rows.logsumexp_NM)]
    assert dtypes == [np.float32, np.int32, np.int32, np.float32]
    assert item.token_ids_T.dtype == np.int32
    assert (rows.count_N == labels.top_k).all()
    assert (np.diff(rows.logits_NK, axis=1) <= 0).all()
    assert rows.token_ids_NK.min() >= 0
    assert rows.token_ids_NK.max() < description.vocab_size
    assert all(len(set(row)) == labels.top_k for row in rows.token_ids_NK.tolist())
    for index, temperature in enumerate(labels.temperatures):
        head_N = np.exp(rows.logits_NK / temperature - rows.logsumexp_NM[:, index, None]).sum(axis=1)
        np.testing.assert_allclose(head_N + np.exp(rows.log_tail_mass_NM[:, index]), 1.0, atol=1e-5)
    # The actual token, where it is stored, has the stored logprob and rank.
    actual_N = item.token_ids_T[item.label_start :]
    found_N, place_N = np.nonzero(rows.token_ids_NK == actual_N[:, None])
    stored_N = rows.logits_NK[found_N, place_N] - rows.logsumexp_NM[found_N, 0]
    np.testing.assert_allclose(rows.label_logprob_N[found_N], stored_N, atol=1e-5)
    outside = np.setdiff1d(np.arange(num_rows), found_N)
    assert (rows.label_rank_N[outside] >= labels.top_k).all()
    assert (rows.label_rank_N[found_N] >= place_N + 1).all()
    assert (rows.label_logprob_N <= 0).all()


def _assert_same_rows(a: LabeledSequence, b: LabeledSequence, tolerance: float) -> None:
    np.testing.assert_array_equal(a.token_ids_T, b.token_ids_T)
    np.testing.assert_allclose(a.rows.logits_NK, b.rows.logits_NK, atol=tolerance)
    np.testing.assert_allclose(a.rows.logsumexp_NM, b.rows.logsumexp_NM, atol=tolerance)
    np.testing.assert_allclose(a.rows.log_tail_mass_NM, b.rows.log_tail_mass_NM, atol=tolerance)


def test_score_labels_the_positions_asked_for(case: Case) -> None:
    teacher, prompts = case.score(), _scored_prompts()
    results = engines.labeled(teacher, prompts)
    assert set(results) == {(prompt.record_id, 0) for prompt in prompts}
    for prompt in prompts:
        item = results[prompt.record_id, 0]
        assert prompt.response_token_ids is not None
        whole_T = np.concatenate([prompt.prompt_token_ids, prompt.response_token_ids])
        np.testing.assert_array_equal(item.token_ids_T, whole_T)
        assert (item.prompt_length, item.label_start) == (len(prompt.prompt_token_ids), prompt.label_start)
        assert item.finish_reason == "scored"
        assert item.loss_mask_N.all()
        _assert_consistent(item, teacher, case.scored)


def test_a_row_is_of_its_own_position(case: Case) -> None:
    """Labels from position 5 on are the rows 4.. of labels from position 1 on."""
    teacher = case.score()
    ids = np.arange(40, 70, dtype=np.int32)
    prompts = [TokenizedPrompt("from-1", ids[:5], ids[5:], 1), TokenizedPrompt("from-5", ids[:5], ids[5:], 5)]
    results = engines.labeled(teacher, prompts)
    a, b = results["from-1", 0].rows, results["from-5", 0].rows
    assert a.num_rows == b.num_rows + 4 == 29
    np.testing.assert_allclose(a.logits_NK[4:], b.logits_NK, atol=case.tolerance)
    np.testing.assert_allclose(a.label_logprob_N[4:], b.label_logprob_N, atol=case.tolerance)


def test_labels_do_not_depend_on_the_company(case: Case) -> None:
    teacher, prompts = case.score(), _scored_prompts()
    together = engines.labeled(teacher, prompts)
    for prompt in prompts[:2]:
        alone = engines.labeled(teacher, [prompt])[prompt.record_id, 0]
        _assert_same_rows(alone, together[prompt.record_id, 0], case.tolerance)


def test_the_loss_mask_is_cut_to_the_labeled_positions(case: Case) -> None:
    mask_T = np.array([True, False, True, False, False, True, True, False])
    ids = np.arange(8, dtype=np.int32)
    prompts = [TokenizedPrompt("masked", ids[:3], ids[3:], 3, mask_T)]
    item = engines.labeled(case.score(), prompts)["masked", 0]
    assert item.loss_mask_N.tolist() == [False, False, True, True, False]


def test_a_bad_prompt_is_an_item_and_the_others_go_on(case: Case) -> None:
    teacher = case.score()
    vocab_size, longest = teacher.describe().vocab_size, teacher.describe().max_model_len
    good = _scored_prompts(2)
    bad = {
        "empty": TokenizedPrompt("no-token", _ids(), _ids(), 1),
        "too_long": TokenizedPrompt("long", _ids(1), np.ones(longest, np.int32), 1),
        "bad_token_id": TokenizedPrompt("alien", _ids(1), _ids(vocab_size), 1),
        "bad_prompt": TokenizedPrompt("no-response", _ids(1, 2), None, 1),
    }
    items = list(teacher.label([*bad.values(), *good, TokenizedPrompt("negative", _ids(-1), _ids(2), 1)]))
    errors = {item.record_id: item for item in items if isinstance(item, PromptError)}
    assert {bad[kind].record_id for kind in bad} | {"negative"} == set(errors)
    assert all(errors[prompt.record_id].kind == kind for kind, prompt in bad.items())
    assert errors["negative"].kind == "bad_token_id"
    assert str(longest) in errors["long"].reason
    done = {item.record_id for item in items if isinstance(item, LabeledSequence)}
    assert done == {prompt.record_id for prompt in good}


def test_the_longest_sequence_allowed_is_labeled(case: Case) -> None:
    teacher = case.score()
    longest = teacher.describe().max_model_len
    ids = (np.arange(longest) % 300).astype(np.int32)
    item = engines.labeled(teacher, [TokenizedPrompt("longest", ids[:1], ids[1:], longest - 2)])["longest", 0]
    assert item.rows.num_rows == 2
    _assert_consistent(item, teacher, case.scored)


def test_an_abandoned_iterator_leaves_the_teacher_usable(case: Case) -> None:
    teacher, prompts = case.score(), _scored_prompts()
    results = teacher.label(prompts)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(engines.labeled(teacher, prompts)) == len(prompts)


def test_work_that_comes_while_the_last_is_unfinished_is_taken_up(case: Case) -> None:
    """An iterator that had no more is asked again, as the labeler's next unit comes to a busy engine."""
    first, second = _scored_prompts(3), TokenizedPrompt("late", _ids(1, 2, 3), _ids(*range(9, 40)), 3)
    later: list[TokenizedPrompt] = []

    class Source:
        def __init__(self) -> None:
            self.waiting = list(first)

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> TokenizedPrompt:
            if self.waiting:
                return self.waiting.pop(0)
            if not later:
                raise StopIteration
            return later.pop()

    found: list[str] = []
    for item in case.score().label(Source()):
        assert isinstance(item, LabeledSequence)
        found.append(item.record_id)
        if len(found) == 1:
            later.append(second)
    assert sorted(found) == sorted([*(prompt.record_id for prompt in first), "late"])


def test_nothing_in_nothing_out(case: Case) -> None:
    assert list(case.score().label([])) == []


def test_generate_gives_n_labeled_responses(case: Case) -> None:
    teacher, labels = case.generate(), case.labels
    prompts = [
        TokenizedPrompt(f"g{index}", np.arange(20 + index, dtype=np.int32), None, 20 + index)
        for index in range(3)
    ]
    results = engines.labeled(teacher, prompts)
    assert set(results) == {
        (prompt.record_id, sample) for prompt in prompts for sample in range(engines.SAMPLING.n)
    }
    for (_, sample), item in results.items():
        response = len(item.token_ids_T) - item.prompt_length
        assert 1 <= response <= engines.SAMPLING.max_tokens
        assert item.finish_reason == "stop" or response == engines.SAMPLING.max_tokens
        assert item.sample_index == sample
        assert item.rows.num_rows == response
        _assert_consistent(item, teacher, labels)


def test_generate_can_label_the_prompt_too(case: Case) -> None:
    prompts = [TokenizedPrompt("all", np.arange(30, 50, dtype=np.int32), None, 1)]
    teacher = case.generate()
    for item in engines.labeled(teacher, prompts).values():
        assert item.rows.num_rows == len(item.token_ids_T) - 1 > 19
        _assert_consistent(item, teacher, case.labels)


def test_the_same_seed_samples_the_same(case: Case) -> None:
    prompt = TokenizedPrompt("again", np.arange(25, dtype=np.int32), None, 25)
    other = TokenizedPrompt("other", np.arange(25, dtype=np.int32), None, 25)
    first = engines.labeled(case.generate(), [prompt])
    second = engines.labeled(case.generate(), [other, prompt])
    for sample in range(engines.SAMPLING.n):
        _assert_same_rows(first["again", sample], second["again", sample], case.tolerance)
    responses = {tuple(item.token_ids_T.tolist()) for item in second.values()}
    assert len(responses) > 1, "samples and records have seeds of their own"


def test_a_response_scored_afterwards_has_the_labels_of_its_writing(case: Case) -> None:
    prompts = [
        TokenizedPrompt(f"w{index}", np.arange(15, dtype=np.int32) + index, None, 1) for index in range(3)
    ]
    written = list(engines.labeled(case.generate(), prompts).values())
    again = engines.scored_again(written, case.score())
    for item in written:
        _assert_same_rows(item, again[f"{item.record_id}/{item.sample_index}"], case.tolerance)


def test_the_description_is_cheap_and_stable(case: Case) -> None:
    teacher = case.score()
    description = teacher.describe()
    assert description == teacher.describe()
    assert description.exact_temperatures == case.scored.temperatures
    assert description.info.capture == case.capture
    assert description.value_kind == "gap_f16", "all of these compute in float32"
    # vLLM always samples one token more than it scores.
    assert engines.MAX_MODEL_LEN - description.max_model_len in (0, 1)


def test_top_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k is 513"):
        FakeTeacher(FAKE, LabelsConfig(top_k=513), SamplingConfig())
