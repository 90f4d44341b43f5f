"""The teacher behind an API against vLLM's server and a stand-in for it: exact labels, and every fault survived."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from benchmarks.jobs.running_job import verify
from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig, load_job
from labeler.config.teacher_settings import ApiTeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import Lease, TokenizedPrompt
from labeler.teacher.openai.calls import ServerFailedError, _Bucket
from labeler.teacher.openai.teacher import OpenAiTeacher
from labeler.teacher.protocol import build_teacher
from logitstore.common.config_file import ConfigError
from logitstore.store import LogitStore
from tests.labeler import engines
from tests.labeler.jobs import label_and_commit, overrides_for, write_records
from tests.labeler.teacher.openai.server import KEY, SERVED, Fault, FaultyProxy, faulty_proxy, vllm_server
from tests.labeler.teacher.openai.stand_in import stand_in_server, write_model
from tests.labeler.whole_jobs.test_storage_faults import started_worker

TOP_K = 20
SCORE = LabelsConfig(mode="score", top_k=TOP_K, temperatures=(1.0,))
GENERATE = LabelsConfig(mode="generate", top_k=TOP_K, temperatures=(1.0,))
GREEDY = SamplingConfig(temperature=0.0, max_tokens=8)


@dataclass(frozen=True)
class Place:
    """A server, and the folder of the model that it serves."""

    url: str
    model: str
    tolerance: float
    """By how much values may differ between runs of other batches."""

    def through(self, url: str) -> Place:
        return replace(self, url=url)

    def encode(self, text: str) -> np.ndarray:
        config = TeacherConfig(model=self.model)
        return np.array(load_tokenizer(config).encode(text)[:60], np.int32)

    def texts(self, count: int) -> list[TokenizedPrompt]:
        empty = np.empty(0, np.int32)
        return [
            TokenizedPrompt(f"text-{index}", empty, self.encode(text), 1)
            for index, text in enumerate(engines.TEXTS[:count])
        ]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = write_model(tmp_path_factory.mktemp("model"))
    with stand_in_server(folder) as url:
        yield Place(url, str(folder), 1e-5)


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param(
            "vllm",
            marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900), engines.needs_model],
        ),
    ]
)
def place(request: pytest.FixtureRequest) -> Place:
    """Both must pass the same tests."""
    if request.param == "vllm":
        return Place(vllm_server(), str(engines.MODEL), 1e-2)
    return request.getfixturevalue("stand_in")


@pytest.fixture
def proxied(place: Place) -> Iterator[tuple[FaultyProxy, Place]]:
    with faulty_proxy(place.url) as (proxy, url):
        yield proxy, place.through(url)


def teacher_at(
    place: Place, labels: LabelsConfig = SCORE, sampling: SamplingConfig = GREEDY, **api: object
) -> OpenAiTeacher:
    given = {"base_url": place.url, "model": SERVED, "key_variable": "PENUMBRA_TEST_KEY"}
    settings = ApiTeacherConfig.model_validate(given | {"longest_pause_sec": 0.3} | api)
    config = TeacherConfig(
        engine="openai", model=place.model, max_model_len=engines.MAX_MODEL_LEN, api=settings
    )
    teacher = build_teacher(config, labels, sampling, cores=None)
    assert isinstance(teacher, OpenAiTeacher)
    return teacher


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENUMBRA_TEST_KEY", KEY)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
@engines.needs_model
def test_labels_are_those_of_the_engine() -> None:
    """At temperature 1, the engine's own log-probabilities."""
    teacher = teacher_at(Place(vllm_server(), str(engines.MODEL), 1e-2))
    prompts = engines.text_prompts(engines.TEXTS[:4])
    ours, theirs = engines.labeled(teacher, prompts), engines.labeled(engines.score_teacher(), prompts)
    for name, item in ours.items():
        logits_NK, lse_N = theirs[name].rows.logits_NK[:, :TOP_K], theirs[name].rows.logsumexp_NM[:, 0]
        assert np.abs(item.rows.logits_NK - (logits_NK - lse_N[:, None])).max() < 1e-2
        assert (item.rows.token_ids_NK[:, 0] == theirs[name].rows.token_ids_NK[:, 0]).mean() > 0.99
        assert np.abs(item.rows.label_logprob_N - theirs[name].rows.label_logprob_N).max() < 1e-2
    teacher.close()


def test_labels_are_those_of_the_stand_in_teacher(stand_in: Place) -> None:
    """The same logits without a server between: exact values, ranks and tails at temperature 1."""
    prompts = stand_in.texts(3)
    fake = TeacherConfig(engine="fake", max_model_len=engines.MAX_MODEL_LEN)
    expected = engines.labeled(build_teacher(fake, SCORE, GREEDY, cores=None), prompts)
    teacher = teacher_at(stand_in)
    for name, item in engines.labeled(teacher, prompts).items():
        rows, theirs = item.rows, expected[name].rows
        np.testing.assert_array_equal(rows.token_ids_NK, theirs.token_ids_NK)
        np.testing.assert_allclose(rows.logits_NK, theirs.logits_NK - theirs.logsumexp_NM[:, :1], atol=1e-5)
        np.testing.assert_allclose(rows.log_tail_mass_NM, theirs.log_tail_mass_NM[:, :1], atol=1e-4)
        np.testing.assert_array_equal(rows.label_rank_N, theirs.label_rank_N)
        np.testing.assert_allclose(rows.label_logprob_N, theirs.label_logprob_N, atol=1e-5)
    description = teacher.describe()
    assert (description.info.capture, description.exact_temperatures) == ("public_api", (1.0,))
    teacher.close()


def test_written_rows_are_those_of_scoring(place: Place) -> None:
    asked = [place.encode(text) for text in engines.QUESTIONS]
    prompts = [TokenizedPrompt(f"q{i}", ids, None, len(ids) - 1) for i, ids in enumerate(asked)]
    teacher = teacher_at(place, GENERATE)
    written = engines.labeled(teacher, prompts)
    again = engines.scored_again(list(written.values()), teacher_at(place))
    rescored = engines.labeled(
        teacher_at(place, GENERATE.model_copy(update={"label_at": "rescore"})), prompts
    )
    for (name, index), item in written.items():
        assert item.finish_reason in ("stop", "length")
        for other in (again[f"{name}/{index}"], rescored[name, index]):
            np.testing.assert_array_equal(item.token_ids_T, other.token_ids_T)
            assert np.abs(item.rows.logits_NK - other.rows.logits_NK).max() <= place.tolerance
        num_written = len(item.token_ids_T) - item.prompt_length
        assert (item.rows.label_rank_N[-num_written:] == 1).all(), "greedy"
    teacher.close()


def test_a_least_length_is_kept_by_the_server(place: Place) -> None:
    asked = [place.encode(text) for text in engines.TEXTS]
    prompts = [TokenizedPrompt(f"q{i}", ids, None, len(ids)) for i, ids in enumerate(asked)]

    def lengths(least: int) -> list[int]:
        sampling = GREEDY.model_copy(update={"min_tokens": least, "max_tokens": 40})
        written = engines.labeled(teacher_at(place, GENERATE, sampling), prompts).values()
        return [len(item.token_ids_T) - item.prompt_length for item in written]

    shortest = min(lengths(0))
    assert shortest < 30, "one of the texts must be continued briefly"
    assert min(lengths(shortest + 5)) >= shortest + 5


def test_every_fault_is_survived_and_nothing_is_twice(proxied: tuple[FaultyProxy, Place]) -> None:
    proxy, place = proxied
    teacher = teacher_at(place, timeout_sec=30, concurrency=4)
    proxy.slow_sec = 0.3
    faults: tuple[Fault, ...] = ("busy", "error", "cut", "slow", "nonsense", "other", "busy", "gateway")
    before = proxy.counts["none"]
    proxy.faults.extend(faults)
    at_start = len(proxy.billed)
    assert teacher.billed().num_answers == at_start == 2, "the self-test costs too"
    prompts = place.texts(6)
    found = engines.labeled(teacher, prompts)
    assert {name: proxy.counts[name] for name in set(faults)} == Counter(faults)
    assert proxy.counts["none"] - before == 5, "one request for each text that no fault spoilt or slowed"
    bill = teacher.billed()
    assert bill.input_tokens == sum(given for _, given, _ in proxy.billed)
    assert bill.output_tokens == sum(written for _, _, written in proxy.billed) > 0
    assert (bill.num_answers, bill.num_lost, bill.num_on_the_way) == (len(proxy.billed), 3, 0)
    clean = engines.labeled(teacher_at(place), prompts)
    assert found.keys() == clean.keys()
    for name, item in found.items():
        assert np.abs(item.rows.logits_NK - clean[name].rows.logits_NK).max() <= place.tolerance
    teacher.close()


def test_an_answer_that_is_too_late_is_asked_for_again(proxied: tuple[FaultyProxy, Place]) -> None:
    proxy, place = proxied
    teacher = teacher_at(place, timeout_sec=2, concurrency=1)
    proxy.slow_sec = 3
    proxy.faults.append("slow")
    assert len(engines.labeled(teacher, place.texts(1))) == 1
    assert proxy.counts["slow"] == 1
    teacher.close()


def test_refusals_have_their_kind(proxied: tuple[FaultyProxy, Place]) -> None:
    proxy, place = proxied
    teacher = teacher_at(place, concurrency=1)
    proxy.faults.append("filtered")
    first, second = list(teacher.label(place.texts(2)))
    assert isinstance(first, PromptError)
    assert first.kind == "content_filter"
    assert not isinstance(second, PromptError)
    ids_T = np.full(engines.MAX_MODEL_LEN + 9, 40, np.int32)
    (long,) = list(teacher.label([TokenizedPrompt("long", ids_T[:0], ids_T, 1)]))
    assert isinstance(long, PromptError)
    assert long.kind == "too_long"
    teacher.close()


def test_an_outage_fails_the_unit_and_leaves_the_teacher_usable(proxied: tuple[FaultyProxy, Place]) -> None:
    """Its unit is labeled again later: no record is rejected for a server that was away."""
    proxy, place = proxied
    teacher = teacher_at(place, tries=3, concurrency=1)
    proxy.every = itertools.repeat("error")
    with pytest.raises(ServerFailedError, match="failed 2 times at one request"):
        list(teacher.label(place.texts(2)))
    assert proxy.counts["error"] == 3 + 2, "one request, and another to see whether it is at fault"
    proxy.every = itertools.repeat(None)
    assert len(engines.labeled(teacher, place.texts(1))) == 1
    teacher.close()
    with pytest.raises(TeacherDiedError):
        list(teacher.label(place.texts(1)))


def test_a_request_that_always_fails_costs_its_unit_nothing_else(proxied: tuple[FaultyProxy, Place]) -> None:
    """One bad record would throw away the answers to all that were in flight, again with each new lease."""
    proxy, place = proxied
    bad, *others = place.texts(4)
    proxy.fails_at = bad.token_ids.tolist()
    teacher = teacher_at(place, tries=2, concurrency=2)
    results = {result.record_id: result for result in teacher.label([bad, *others])}
    error = results.pop(bad.record_id)
    assert isinstance(error, PromptError)
    assert (error.kind, error.sample_index) == ("server_failed", None)
    assert sorted(results) == [one.record_id for one in others]
    assert not any(isinstance(one, PromptError) for one in results.values())
    assert "failed 2 times at one request, the last with 503" in error.reason
    assert "failed in two rounds, and another request was answered after each: the server" in error.reason
    assert proxy.counts["always"] == 4, "two tries in each of two rounds"
    teacher.close()


@pytest.mark.parametrize("fault", ["busy", "restart", "gateway", "cut", "mixed"])
def test_a_server_that_is_busy_or_out_of_reach_rejects_no_record(
    proxied: tuple[FaultyProxy, Place], fault: Literal["busy", "restart", "gateway", "cut", "mixed"]
) -> None:
    """A limit of tokens per minute takes the short request by which it was asked whether it answers others."""
    proxy, place = proxied
    bad, *others = place.texts(3)
    proxy.fails_at = bad.token_ids.tolist()
    teacher = teacher_at(place, tries=2, concurrency=1, longest_pause_sec=0.01)
    if fault == "mixed":
        proxy.fails_at = None
        proxy.faults.extend(["busy", "error"])
    else:
        proxy.fails_with = fault
    with pytest.raises(ServerFailedError, match="failed 2 times at one request") as caught:
        list(teacher.label([bad, *others]))
    assert caught.type is ServerFailedError
    teacher.close()


def test_a_request_that_fails_once_has_its_second_round(proxied: tuple[FaultyProxy, Place]) -> None:
    proxy, place = proxied
    teacher = teacher_at(place, tries=2, concurrency=1)
    proxy.faults.extend(["error", "error"])
    assert [name for name, _ in engines.labeled(teacher, place.texts(3))] == ["text-1", "text-2", "text-0"]
    teacher.close()


def test_what_a_server_cannot_do_is_said_at_the_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"lower labels\.top_k"):
        teacher_at(place, SCORE.model_copy(update={"top_k": 40}))
    with pytest.raises(ServerFailedError, match=r"teacher\.api\.model"):
        teacher_at(place, model="another")
    monkeypatch.setenv("PENUMBRA_TEST_KEY", "wrong-key-of-mine")
    with pytest.raises(ServerFailedError, match="PENUMBRA_TEST_KEY") as caught:
        teacher_at(place)
    assert "wrong-key-of-mine" not in str(caught.value)


def test_another_models_tokenizer_is_found(stand_in: Place, tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["d"], words["n"] = words["n"], words["d"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="name the model that the server serves"):
        teacher_at(replace(stand_in, model=str(folder)))


def test_requests_and_tokens_are_spread_over_the_minute() -> None:
    bucket = _Bucket(per_minute=120)
    assert [bucket.wait_sec(1, 10.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    assert bucket.wait_sec(60, 100.0) == 0.0
    assert bucket.wait_sec(1, 101.0) == 29.0
    assert _Bucket(per_minute=0).wait_sec(10**9, 0.0) == 0.0


@pytest.mark.slow
def test_a_worker_commits_each_record_once_whatever_the_server_does(
    proxied: tuple[FaultyProxy, Place], tmp_path: Path
) -> None:
    """A unit that an outage failed is leased again; the key is in nothing that is written."""
    proxy, place = proxied
    write_records(tmp_path / "in.jsonl", 24)
    settings = [
        "teacher.engine=openai",
        f"teacher.model='{place.model}'",
        f"teacher.max_model_len={engines.MAX_MODEL_LEN}",
    ]
    settings += [f"teacher.api.base_url='{place.url}'", f"teacher.api.model={SERVED}", "teacher.api.tries=4"]
    settings += ["teacher.api.key_variable=PENUMBRA_TEST_KEY", "teacher.api.longest_pause_sec=0.3"]
    settings += ["labels.temperatures=[1.0]", "input.chat_template=false"]
    job = load_job(None, overrides_for(tmp_path, *settings), {})
    worker, units = started_worker(job)
    assert len(units) == 3
    proxy.every = itertools.repeat("error")
    with pytest.raises(ServerFailedError):
        label_and_commit(worker, Lease(0, units[0], "w"))
    proxy.every = itertools.repeat(None)
    faults: list[Fault] = ["cut", "busy", "error", "nonsense", "other", "error", "busy", "cut"]
    proxy.faults.extend(faults * 3)
    for unit in units:
        for number in range(1, 20):
            with suppress(ServerFailedError):
                assert label_and_commit(worker, Lease(number, unit, "w")).won
                break
        else:
            pytest.fail("the unit is never labeled")
    worker.close()
    store = LogitStore.open(tmp_path / "store")
    ids = [sequence.record_id for sequence in store.iter_sequences()]
    assert ids == [str(i) for i in range(24)]
    assert store.rejects() == []
    assert verify(tmp_path / "store", tmp_path / "in.jsonl").returncode == 0
    assert (store.manifest.teacher.engine, store.manifest.teacher.capture) == ("openai", "public_api")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


BASE = ["teacher.model=m", "input.uri=x", "input.kind=text", "output.uri=y", "labels.temperatures=[1.0]"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["teacher.engine=openai"], r"teacher\.api\.base_url"),
        (["teacher.api.base_url='http://h/v1'"], "leave api.base_url out"),
        (["teacher.engine=openai", "teacher.api.base_url='h/v1'"], "must begin with http"),
        (["teacher.engine=openai", "teacher.api.base_url='http://u:hunter2@h/v1'"], "holds a credential"),
        (
            ["teacher.engine=openai", "teacher.api.base_url='http://h/v1'", "labels.temperatures=[1.0,2.0]"],
            r"set labels\.temperatures = \[1\.0\]",
        ),
        (
            ["teacher.engine=openai", "teacher.api.base_url='http://h/v1'", "sampling.stop=['x']"],
            "stop_token_ids",
        ),
    ],
)
def test_settings_that_no_server_can_do_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_job(None, [*BASE, *settings], {})
    assert "hunter2" not in str(caught.value)
