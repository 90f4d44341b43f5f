"""The real engine's labels against transformers, and under everything an engine does to its requests.

Shape legend: T tokens, N label rows, K stored entries, M temperatures, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.labels import agreement
from labeler.config.loading import SamplingConfig, TeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.teacher import known_vllm
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.requests import EngineLimits, Requests
from logitstore.records import LabeledSequence
from tests.labeler import engines

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

BATCH_TOLERANCE = 1e-3
"""How far raw logits may move when the same tokens are computed in other batches (measured: below 1e-4)."""


def _reference_logits(item: LabeledSequence) -> np.ndarray:
    """float64 [N, V], from transformers in fp32, of the labeled positions."""
    return agreement.reference_logits(engines.reference_model(), item)


def _difference(a: LabeledSequence, b: LabeledSequence) -> float:
    """Largest difference of the values of two labelings of the same tokens."""
    np.testing.assert_array_equal(a.token_ids_T, b.token_ids_T)
    assert a.label_start == b.label_start
    pairs = (
        (a.rows.logits_NK, b.rows.logits_NK),
        (a.rows.logsumexp_NM, b.rows.logsumexp_NM),
        (a.rows.log_tail_mass_NM, b.rows.log_tail_mass_NM),
        (a.rows.label_logprob_N, b.rows.label_logprob_N),
    )
    return max(float(np.abs(x - y).max()) for x, y in pairs)


def test_labels_agree_with_transformers() -> None:
    items = engines.labeled(engines.score_teacher(), engines.text_prompts()).values()
    found: dict[str, list[np.ndarray]] = {}
    for item in items:
        for name, values in agreement.compare(item, _reference_logits(item), (1.0, 2.0, 4.0)).items():
            found.setdefault(name, []).append(values)
    rows = {name: np.concatenate(values) for name, values in found.items()}
    assert len(rows["same_top"]) > 250
    assert rows["same_top"].mean() >= agreement.LEAST_SAME_TOP
    assert rows["same_set"].mean() >= agreement.LEAST_SAME_SET
    assert rows["excess"].max() <= agreement.MOST_EXCESS
    assert max(rows["normaliser"].max(), rows["tail"].max(), rows["label"].max()) < 1e-3


def test_sampled_labels_are_of_the_raw_logits() -> None:
    """Temperature 0.8 and top_p 0.95 shape the response and must not shape its labels."""
    item = next(iter(engines.labeled(engines.generate_teacher(), engines.question_prompts(1)).values()))
    logits_NV = _reference_logits(item)
    theirs_NK = np.take_along_axis(logits_NV, item.rows.token_ids_NK.astype(np.int64), 1)
    assert np.abs(theirs_NK - item.rows.logits_NK).max() < 1e-2
    assert np.abs(item.rows.logsumexp_NM[:, 0] - np.logaddexp.reduce(logits_NV, axis=1)).max() < 1e-2


def test_generating_and_scoring_give_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """n = 2, a stop string, sampling and prompts read from the prefix cache, against plain scoring."""
    num_cached: list[int] = []
    original = Requests.result

    def counting(requests: Requests, work: Any, output: Any) -> Any:
        num_cached.append(output.num_cached_tokens or 0)
        return original(requests, work, output)

    monkeypatch.setattr(Requests, "result", counting)
    written = list(engines.labeled(engines.generate_teacher(), engines.question_prompts()).values())
    assert sum(num_cached) >= 32 * len(written) // 2, (
        "the cache was not used, so this test tests nothing of it"
    )
    num_cached.clear()
    again = engines.scored_again(written, engines.score_teacher())
    assert sum(num_cached) == 0, "scored positions must all be computed"
    worst = max(_difference(item, again[f"{item.record_id}/{item.sample_index}"]) for item in written)
    assert worst < BATCH_TOLERANCE


def test_a_stop_string_ends_a_response_behind_its_last_labeled_token() -> None:
    prompt = TokenizedPrompt("list", engines.encode("Fruits:\n\nApples\n\nPears\n\n"), None, 1)
    for item in engines.labeled(engines.generate_teacher(), [prompt]).values():
        text = engines.tokenizer().decode(item.token_ids_T[item.prompt_length :])  # type: ignore[attr-defined]
        assert ("\n\n" in text) <= (item.finish_reason == "stop")
        assert item.rows.num_rows == len(item.token_ids_T) - 1


def test_pieces_and_preemption_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts computed 48 tokens at a time and answers thrown out of a tiny cache and computed again."""
    teacher: Any = engines.stressed_teacher()
    scheduler = teacher.engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    original = scheduler._preempt_request

    def counted(request: Any, *arguments: Any, **named: Any) -> Any:
        preempted.append(request.request_id)
        return original(request, *arguments, **named)

    monkeypatch.setattr(scheduler, "_preempt_request", counted)
    texts = [
        TokenizedPrompt(prompt.record_id, prompt.response_token_ids, None, 1)
        for prompt in engines.text_prompts()
        if prompt.response_token_ids is not None
    ]
    prompts = [*texts, *engines.question_prompts(1)]
    assert max(prompt.num_tokens for prompt in prompts) > 48
    written = list(engines.labeled(teacher, prompts).values())
    assert preempted, "the cache was not small enough for this test to test anything"
    again = engines.scored_again(written, engines.score_teacher())
    worst = max(_difference(item, again[f"{item.record_id}/{item.sample_index}"]) for item in written)
    assert worst < BATCH_TOLERANCE


def test_the_end_of_turn_is_labeled_and_ends_the_response() -> None:
    """With this record's seed the first sample is "1. Red, 2. Blue, 3. Green" and the end, in 12 tokens."""
    prompt = engines.chat_prompt("r0", "List three colours.")
    item = engines.labeled(engines.generate_teacher(), [prompt])["r0", 0]
    assert item.finish_reason == "stop"
    ends_N = item.token_ids_T[item.prompt_length :] == 2  # <|im_end|>
    assert ends_N.tolist() == [False] * (len(ends_N) - 1) + [True]
    assert item.rows.num_rows == len(ends_N)


def test_a_least_length_keeps_a_response_going_and_its_labels_raw() -> None:
    """Where the end of turn is likeliest and may not be sampled yet, the row still says that it is."""
    teacher, prompts = (
        engines.generate_teacher(),
        [engines.chat_prompt("r0", "What is the capital of France?")],
    )
    sampling = SamplingConfig(temperature=0.0, max_tokens=24)
    teacher.change_labels(engines.GENERATE, sampling)
    (short,) = engines.labeled(teacher, prompts).values()
    num_short = len(short.token_ids_T) - short.prompt_length
    assert short.finish_reason == "stop", "the question must have an answer shorter than the least length"
    teacher.change_labels(engines.GENERATE, sampling.model_copy(update={"min_tokens": num_short + 5}))
    written = list(engines.labeled(teacher, prompts).values())
    (item,) = written
    response_T = item.token_ids_T[item.prompt_length :]
    assert len(response_T) > num_short + 5 - 1
    assert 2 not in response_T[: num_short + 5], "<|im_end|>"
    assert item.rows.token_ids_NK[num_short - 1, 0] == 2
    again = engines.scored_again(written, engines.score_teacher())
    assert _difference(item, again["r0/0"]) < BATCH_TOLERANCE


def test_greedy_responses_are_their_rows_top_entries() -> None:
    for item in engines.labeled(engines.stressed_teacher(), engines.question_prompts()[:2]).values():
        np.testing.assert_array_equal(item.rows.token_ids_NK[:, 0], item.token_ids_T[item.label_start :])
        assert (item.rows.label_rank_N == 1).all()


def test_cached_positions_are_refused_rather_than_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM keeps no logits of cached positions and would return uninitialised rows for them."""
    from vllm import SamplingParams

    teacher: Any = engines.generate_teacher()
    prompt = TokenizedPrompt("cached", np.arange(200, dtype=np.int32), None, 1)
    engines.labeled(teacher, [prompt])
    original = Requests.parameters

    def reading_the_cache(requests: Requests, work: Any) -> SamplingParams:
        parameters = original(requests, work)
        parameters.skip_reading_prefix_cache = False
        return parameters

    monkeypatch.setattr(Requests, "parameters", reading_the_cache)
    items = list(teacher.label([prompt]))
    assert [type(item) for item in items] == [PromptError, PromptError]
    assert all(item.kind == "bad_labels" and "prefix cache" in item.reason for item in items)


def test_where_the_capture_is_not_known_labels_fall_back_loudly_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real engine through the public API: exact at T=1 only, and described so."""
    import torch
    import vllm

    prompt = engines.text_prompts()[0]
    ours = engines.labeled(engines.score_teacher(), [prompt])[prompt.record_id, 0].rows
    monkeypatch.setattr(known_vllm, "SOURCES_BY_VERSION", {"0.0.1": {}})
    config = TeacherConfig(
        model=str(engines.MODEL), max_model_len=256, engine_args={"kv_cache_memory_bytes": 64 << 20}
    )
    with torch.compiler.set_stance("force_eager"):  # vLLM would spend half a minute compiling its ranks
        teacher = engines.start(config, engines.SCORE, engines.SAMPLING)
        public = engines.labeled(teacher, [prompt])[prompt.record_id, 0].rows
    assert f"vLLM {vllm.__version__} is not among the versions" in caplog.text
    assert "LABELS WILL BE EXACT AT T=1 ONLY" in caplog.text
    description = teacher.describe()
    assert (description.exact_temperatures, description.info.capture) == ((1.0,), "public_api")
    assert public.logsumexp_NM.shape == (ours.num_rows, 1)
    np.testing.assert_allclose(public.logits_NK, ours.logits_NK - ours.logsumexp_NM[:, :1], atol=1e-3)
    np.testing.assert_allclose(
        np.exp(public.log_tail_mass_NM[:, 0]), np.exp(ours.log_tail_mass_NM[:, 0]), atol=5e-5
    )
    # Far down the ranking distinct logits round to equal log-probabilities.
    near_N = ours.label_rank_N <= 64
    assert near_N.sum() > 10
    np.testing.assert_array_equal(public.label_rank_N[near_N], ours.label_rank_N[near_N])
    np.testing.assert_allclose(public.label_rank_N, ours.label_rank_N, rtol=0.01)


def test_stock_lists_and_arrays_hold_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the front end's class is unknown, rows come back through vLLM's own flat lists."""
    import vllm.v1.engine.output_processor as output_processor
    from vllm.v1.engine.logprobs import LogprobsProcessor

    prompts = engines.text_prompts()[:2]
    arrays = engines.labeled(engines.score_teacher(), prompts)
    monkeypatch.setattr(output_processor, "LogprobsProcessor", LogprobsProcessor)
    lists = engines.labeled(engines.score_teacher(), prompts)
    for key, item in arrays.items():
        assert _difference(item, lists[key]) < BATCH_TOLERANCE
        np.testing.assert_array_equal(item.rows.label_rank_N, lists[key].rows.label_rank_N)


def test_the_v2_runners_function_returns_its_types() -> None:
    """The V2 runner needs a GPU; its replaced function is called here as its sampler calls it."""
    import torch
    from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

    from labeler.teacher.vllm.capture import installing as vllm_capture

    layout = ColumnLayout(16, (1.0, 2.0))
    logits_NV = torch.randn(6, 2048, generator=torch.Generator().manual_seed(1)) * 4
    label_ids_N = torch.tensor([3, 5, 7, 11, 13, 17])
    wrapped = vllm_capture.wrap_v2(compute_topk_scores, layout)
    result = wrapped(logits_NV, layout.num_logprobs, label_ids_N, [0, 1, 3, 6], logits_mode=True)
    assert result.logprob_token_ids.dtype == result.selected_token_ranks.dtype == torch.int64
    assert result.logprobs.dtype == torch.float32
    assert result.logprobs.shape == result.logprob_token_ids.shape == (6, layout.num_columns)
    assert result.cu_num_generated_tokens == [0, 1, 3, 6]
    assert result.cu_num_generated_tokens_tensor is None
    np.testing.assert_allclose(result.logprobs[:, 17], torch.logsumexp(logits_NV, 1), atol=1e-5)
    on_device = wrapped(logits_NV, layout.num_logprobs, label_ids_N, torch.tensor([0, 6]), logits_mode=True)
    assert on_device.cu_num_generated_tokens is None
    assert on_device.cu_num_generated_tokens_tensor is not None


def test_the_v2_runner_is_given_the_capture_in_every_importer(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from labeler.teacher.vllm.capture import installing as vllm_capture

    modules = [importlib.import_module(name) for name in vllm_capture.V2_IMPORTERS]
    for module in modules:
        monkeypatch.setattr(module, "compute_topk_scores", module.compute_topk_scores)  # type: ignore[attr-defined]
    before = {module.compute_topk_scores for module in modules}  # type: ignore[attr-defined]
    vllm_capture.install_v2(ColumnLayout(4, (1.0,)))
    after = {module.compute_topk_scores for module in modules}  # type: ignore[attr-defined]
    assert len(before) == len(after) == 1
    assert before != after


def test_this_vllm_is_the_one_the_capture_was_written_for() -> None:
    import vllm

    assert known_vllm.capture_refusal(vllm.__version__, "v1") is None
    assert known_vllm.capture_refusal(vllm.__version__, "v2") is None
    assert known_vllm.keeps_arrays()


def test_a_changed_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from labeler.teacher.vllm.teacher import VllmTeacher

    changed = {vllm.__version__: {"v1": "0" * 64, "v2": "0" * 64}}
    monkeypatch.setattr(known_vllm, "SOURCES_BY_VERSION", changed)
    config = TeacherConfig(model=str(engines.MODEL), capture="in_engine")
    with pytest.raises(RuntimeError, match=r"gather_logprobs.*is not the released one.*public_api"):
        VllmTeacher(config, engines.SCORE, engines.SAMPLING)


def test_the_self_test_finds_a_capture_that_miscounts(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher: Any = engines.score_teacher()
    runner = teacher.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    good = runner.sampler.gather_logprobs

    def torn(logprobs: Any, num_logprobs: int, token_ids: Any) -> Any:
        rows = good(logprobs, num_logprobs, token_ids)
        rows.logprobs[:, 66] += 0.5
        return rows

    assert teacher._self_test() is None
    monkeypatch.setattr(runner.sampler, "gather_logprobs", torn)
    assert "checksum" in teacher._self_test()
    monkeypatch.setattr(runner.sampler, "gather_logprobs", type(runner.sampler).gather_logprobs)
    assert "without their tail columns" in teacher._self_test()


def test_an_engine_that_fails_is_dead_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher: Any = engines.score_teacher()

    def failing() -> Any:
        raise MemoryError("no memory for the logits")

    monkeypatch.setattr(teacher._feed, "_dead", None)
    monkeypatch.setattr(teacher.engine, "step", failing)
    with pytest.raises(TeacherDiedError, match="no memory for the logits"):
        list(teacher.label(engines.text_prompts()[:1]))
    with pytest.raises(TeacherDiedError, match="start a new teacher"):
        list(teacher.label(engines.text_prompts()[:1]))
    monkeypatch.undo()
    for request_id in list(teacher.engine.output_processor.external_req_ids):
        teacher.engine.abort_request([request_id])
    assert engines.labeled(teacher, engines.text_prompts()[:1])


def test_every_setting_of_sampling_reaches_vllm() -> None:
    settings = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "max_tokens": 17,
        "min_tokens": 9,
        "n": 3,
        "seed": 5,
        "stop": ("END",),
        "stop_text": "mask",
        "stop_token_ids": (7, 8),
    }
    assert set(settings) == set(SamplingConfig.model_fields)
    sampling = SamplingConfig(**settings)  # type: ignore[arg-type]
    limits = EngineLimits(vocab_size=512, max_tokens=64, step_tokens=64, max_requests=4, max_logprobs=80)
    requests = Requests(engines.GENERATE, sampling, None, limits, (2,), keeps_arrays=True)
    works = requests.works_of(TokenizedPrompt("a", np.arange(4, dtype=np.int32), None, 4))
    assert [work.sample_index for work in works] == [0, 1, 2]
    given = [requests.parameters(work) for work in works]
    reached = set(settings) - {"n", "seed", "stop", "stop_text", "stop_token_ids"}
    for name in reached:
        assert {getattr(parameters, name) for parameters in given} == {settings[name]}, name
    narrow = TokenizedPrompt("b", np.arange(60, dtype=np.int32), None, 60)
    cut = requests.parameters(requests.works_of(narrow)[0])
    assert (cut.min_tokens, cut.max_tokens) == (4, 4), "vLLM takes no more of the one than of the other"
    assert all(parameters.stop == ["END"] for parameters in given)
    assert all(parameters.stop_token_ids == [2, 7, 8] for parameters in given)
    other_seed = Requests(
        engines.GENERATE, SamplingConfig(n=3, seed=6), None, limits, (2,), keeps_arrays=True
    )
    seeds = {parameters.seed for parameters in given}
    assert len(seeds) == 3
    assert seeds.isdisjoint(other_seed.parameters(work).seed for work in works)
