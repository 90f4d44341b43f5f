"""The real teacher: one vLLM engine in this process or below it.

Shape legend: T tokens, N label rows, K stored entries.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import TeacherDescription, TokenizedPrompt
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.model_identity import find_model_folder, model_fingerprint, model_name
from labeler.teacher.protocol import usable_tokens
from labeler.teacher.response_ends import ResponseEnds
from labeler.teacher.vllm.engine import (
    QUEUED_BATCHES,
    SPARE_SEQUENCES,
    engine_args,
    head_choice,
    prepare_process,
    start_engine,
    stop_engine,
)
from labeler.teacher.vllm.requests import EngineLimits, Requests, Work, again, request_error
from logitstore.manifest.fields import TeacherInfo
from logitstore.records import LabeledSequence

if TYPE_CHECKING:
    from labeler.teacher.vllm.machines import Followers

logger = logging.getLogger(__name__)

SELF_TEST_TOKENS = 16
MASS_TOLERANCE = 1e-4
"""How far head and tail may miss the whole, in nats, in the self-test."""


class VllmTeacher:
    """See `labeler.teacher.protocol.Teacher`."""

    _requests: Requests

    def __init__(
        self,
        teacher_config: TeacherConfig,
        labels_config: LabelsConfig,
        sampling_config: SamplingConfig,
        *,
        cores: str | None = None,
        machines: int = 1,
        ends: ResponseEnds | None = None,
    ) -> None:
        """Start the engine and test it. See `build_teacher` for `cores`, `machines` and `ends`.

        Raises:
            FileNotFoundError: no such model.
            RuntimeError: `capture = "in_engine"` and the capture does not work here.
        """
        prepare_process(teacher_config, cores, machines)
        self._teacher = teacher_config
        self._machines = machines
        self._ends = ends if ends is not None else load_tokenizer(teacher_config, None, sampling_config).ends
        # A stop text that is one marker has become an id; only others need text to be found.
        self._sampling = sampling_config.model_copy(update={"stop": self._ends.stop})
        self._followers: Followers | None = None
        self._folder = find_model_folder(teacher_config.model, teacher_config.revision)
        self._head = head_choice(teacher_config, self._folder)
        logger.info("logits: %s", self._head.in_words)
        self._dead: str | None = None
        self._next_request = 0
        self._engine: Any = None
        if not self._start_in_engine(labels_config):
            self._start_public_api(labels_config)
        self._description = self._describe()

    def _start_in_engine(self, labels: LabelsConfig) -> bool:
        """Start with the capture inside the engine; False, after saying why, where that cannot be had."""
        if self._teacher.capture == "public_api":
            return False
        reason = self._refusal(labels)
        if reason is None:
            self._start(labels, ColumnLayout(labels.top_k, labels.temperatures))
            reason = self._install() or self._self_test()
        if reason is None:
            return True
        if labels.given:
            self.close()
            raise RuntimeError(
                f"labels.given needs the capture inside the engine, but {reason}; install a vLLM version "
                "that the capture knows, or remove labels.given"
            )
        if self._teacher.capture == "in_engine":
            self.close()
            raise RuntimeError(
                f'teacher.capture is "in_engine", but {reason}; install a vLLM version that the capture '
                'knows, or set capture = "public_api" (exact at T=1 only)'
            )
        logger.warning(
            "LABELS WILL BE EXACT AT T=1 ONLY: %s. Falling back to vLLM's public API; the store is marked "
            'capture = "public_api" and holds no other temperature.',
            reason,
        )
        self._stop()
        return False

    def _start_public_api(self, labels: LabelsConfig) -> None:
        self._start(labels, None)
        reason = self._self_test()
        if reason is not None:
            self.close()
            raise RuntimeError(f"the engine's labels are wrong: {reason}; check the model and its dtype")

    def _start(self, labels: LabelsConfig, layout: ColumnLayout | None) -> None:
        from labeler.teacher.vllm.outputs import keep_arrays

        keeps_arrays = keep_arrays()
        if not keeps_arrays:
            logger.warning("this vLLM's LogprobsProcessor is unknown: label rows go through lists, slower")
        num_logprobs = labels.top_k if layout is None else layout.num_logprobs
        arguments = engine_args(
            self._teacher,
            labels,
            self._sampling,
            self._folder,
            num_logprobs,
            in_engine=layout is not None,
            head=self._head.head,
        )
        self._engine = self._start_everywhere(arguments)
        config = self._engine.vllm_config
        limits = EngineLimits(
            vocab_size=config.model_config.get_vocab_size(),
            max_tokens=usable_tokens(config.model_config.max_model_len),
            # Every stage of a pipeline has a batch of its own.
            step_tokens=config.scheduler_config.max_num_batched_tokens * self._teacher.pipeline_parallel_size,
            max_requests=int(config.scheduler_config.max_num_seqs * SPARE_SEQUENCES),
            max_logprobs=num_logprobs,
        )
        if labels.top_k > limits.vocab_size:
            raise ValueError(
                f"labels.top_k is {labels.top_k}, the teacher's vocabulary has {limits.vocab_size} ids; "
                "set top_k to at most that"
            )
        has_tokenizer = labels.mode == "generate" and self._sampling.stop  # as `engine_args` asks for it
        decode = self._engine.get_tokenizer().decode if has_tokenizer else None
        self._requests = Requests(
            labels, self._sampling, layout, limits, self._ends.token_ids, keeps_arrays, decode
        )

    def _start_everywhere(self, arguments: dict[str, Any]) -> Any:
        """The engine, on the further machines as well where it has some."""
        if self._machines == 1:
            return start_engine(arguments)
        from labeler.teacher.vllm.machines import Followers

        followers = self._followers = Followers(self._teacher, arguments)
        try:
            return start_engine(followers.leader_arguments)
        except Exception as error:
            failure = followers.failure()
            followers.close()
            if failure is None:
                raise
            raise RuntimeError(failure) from error

    def _stop(self) -> None:
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        if self._followers is not None:
            self._followers.expect_end()
        stop_engine(engine)
        if self._followers is not None:
            self._followers.close()

    def _refusal(self, labels: LabelsConfig) -> str | None:
        import vllm

        from labeler.teacher.vllm import capture, given_capture

        found = [capture.refusal(vllm.__version__, runner) for runner in ("v1", "v2")]
        if labels.given:
            found += [given_capture.refusal(runner) for runner in ("v1", "v2")]
        return next((reason for reason in found if reason), None)

    def _install(self) -> str | None:
        labels = self._requests.labels
        arguments = (labels.top_k, list(labels.temperatures), bool(labels.given))
        answers = self._engine.collective_rpc("penumbra_install", args=arguments)
        for note in sorted({answer["reduction"] for answer in answers}):
            # A GPU without the kernel labels at a fraction of its rate.
            level = logging.WARNING if "because" in note else logging.INFO
            logger.log(level, "the capture reduces the logits by %s", note)
        return next((answer["refusal"] for answer in answers if answer["refusal"]), None)

    def _self_test(self) -> str | None:
        """Score a fixed prompt; what is wrong with its rows, or None."""
        limits = self._requests.limits
        ids_T = np.linspace(0, limits.vocab_size - 1, SELF_TEST_TOKENS, dtype=np.int32)
        ids_T = ids_T[: limits.max_tokens]
        given_NK = self_test_ids(self._requests.labels, len(ids_T) - 1, limits.vocab_size)
        prompt = TokenizedPrompt("self-test", ids_T[:0], ids_T, 1, given_ids_NK=given_NK)
        results = list(self._run(iter(()), deque([Work(prompt, 0, ids_T, "score")])))
        result = results[0]
        if isinstance(result, PromptError):
            return f"the self-test failed: {result.reason}"
        rows = result.rows
        for index, temperature in enumerate(self._requests.exact_temperatures):
            head_N = np.logaddexp.reduce(rows.logits_NK / temperature, axis=1)
            tail_N = rows.log_tail_mass_NM[:, index] + rows.logsumexp_NM[:, index]
            miss = np.abs(np.logaddexp(head_N, tail_N) - rows.logsumexp_NM[:, index]).max()
            if not miss < MASS_TOLERANCE:
                return f"head and tail miss the whole by {miss:.2g} nats at T={temperature} in the self-test"
        return None

    def _describe(self) -> TeacherDescription:
        import vllm

        model, requests = self._engine.vllm_config.model_config, self._requests
        in_engine = requests.layout is not None
        model_dtype, head_dtype = (
            str(dtype).removeprefix("torch.") for dtype in (model.dtype, model.head_dtype)
        )
        dtype = self._head.dtype_of_logits(model_dtype, head_dtype)
        return TeacherDescription(
            info=TeacherInfo(
                model=model_name(self._teacher.model),
                revision=self._teacher.revision,
                fingerprint=model_fingerprint(self._folder),
                dtype=dtype,
                quantization=model.quantization,
                engine="vllm",
                engine_version=vllm.__version__,
                capture="in_engine" if in_engine else "public_api",
            ),
            vocab_size=requests.limits.vocab_size,
            max_model_len=requests.limits.max_tokens,
            exact_temperatures=requests.exact_temperatures,
            value_kind="logit_f16" if in_engine and dtype in ("bfloat16", "float16") else "gap_f16",
        )

    def describe(self) -> TeacherDescription:
        return self._description

    def change_labels(
        self, labels_config: LabelsConfig, sampling_config: SamplingConfig | None = None
    ) -> None:
        """Label otherwise from now on with the same engine; no iterator of `label` may be open.

        Sampling stays as it is where `sampling_config` is None.
        The engine keeps its caches and limits: K and the temperatures may only take as many columns as
        it was started with, and stop strings need a teacher started with some.
        """
        layout = ColumnLayout(labels_config.top_k, labels_config.temperatures)
        requests = replace(
            self._requests,
            labels=labels_config,
            sampling=sampling_config or self._requests.sampling,
            layout=layout if self._requests.layout is not None else None,
        )
        if requests.num_logprobs > requests.limits.max_logprobs:
            raise ValueError(
                f"K={labels_config.top_k} and {len(labels_config.temperatures)} temperatures take "
                f"{requests.num_logprobs} columns, the engine was started for "
                f"{requests.limits.max_logprobs}; start a new teacher"
            )
        self._requests = requests
        if requests.layout is not None:
            self._install()
        self._description = self._describe()

    @property
    def engine(self) -> Any:
        """vLLM's own `LLMEngine`, for measurements and tests."""
        return self._engine

    def billed(self) -> None:
        """No server is asked."""

    def close(self) -> None:
        self._stop()
        self._dead = self._dead or "it was closed"

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        yield from self._run(iter(prompts), deque())

    def _run(
        self, prompts: Iterator[TokenizedPrompt], waiting: deque[Work]
    ) -> Iterator[LabeledSequence | PromptError]:
        running: dict[str, Work] = {}
        try:
            yield from self._feed(prompts, waiting, running)
            while running:
                for output in self._step():
                    work = running.pop(output.request_id)
                    result = self._requests.result(work, output)
                    if isinstance(result, Work):
                        waiting.appendleft(result)
                    else:
                        yield result
                yield from self._feed(prompts, waiting, running)
        finally:
            if running and self._dead is None:
                self._engine.abort_request(list(running))

    def _feed(
        self, prompts: Iterator[TokenizedPrompt], waiting: deque[Work], running: dict[str, Work]
    ) -> Iterator[PromptError]:
        """Hand requests over until the engine has enough to do; those that are refused come back."""
        # A decoding request keeps its place for long but has its prompt behind it: only the count bounds it.
        tokens = sum(len(work.tokens_T) for work in running.values() if work.stage == "score")
        while len(running) < self._requests.limits.max_requests:
            if running and tokens >= QUEUED_BATCHES * self._requests.limits.step_tokens:
                return
            if not waiting:
                prompt = next(prompts, None)
                if prompt is None:
                    return
                error = self._requests.refused(prompt)
                if error is not None:
                    yield error
                    continue
                waiting.extend(self._requests.works_of(prompt))
            work = waiting.popleft()
            request_id = f"{self._next_request}"
            self._next_request += 1
            refused = self._add(request_id, work)
            if isinstance(refused, Work):
                waiting.appendleft(refused)
                continue
            if refused is not None:
                yield refused
                continue
            running[request_id] = work
            tokens += len(work.tokens_T) if work.stage == "score" else 0

    def _add(self, request_id: str, work: Work) -> Work | PromptError | None:
        """Hand one request over; what to do instead where vLLM will not have it."""
        from vllm import exceptions

        # New in vLLM 0.33, and no fault of the request's.
        retryable: type[Exception] | tuple[()] = getattr(exceptions, "RetryableRequestError", ())
        self._raise_if_dead()
        prompt = {"prompt_token_ids": work.tokens_T.tolist()}
        try:
            self._engine.add_request(request_id, prompt, self._requests.parameters(work))
        except retryable as error:
            return again(work, str(error))
        except (exceptions.VLLMClientError, ValueError) as error:
            return request_error(work, f"vLLM refuses it: {error}", "bad_prompt")
        except Exception as error:
            raise self._died(error) from error
        return None

    def _step(self) -> list[Any]:
        """One step of the engine; the requests that finished in it."""
        self._raise_if_dead()
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:
            raise self._died(error) from error

    def _died(self, error: Exception) -> TeacherDiedError:
        """EngineDeadError, or in-process whatever the engine stumbled over: no request survives either."""
        lost = self._followers.failure() if self._followers is not None else None
        self._dead = lost or f"{type(error).__name__}: {error}"
        return TeacherDiedError(f"the engine died ({self._dead}); start a new teacher")

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise TeacherDiedError(f"the engine is gone ({self._dead}); start a new teacher")


def self_test_ids(labels: LabelsConfig, num_rows: int, vocab_size: int) -> np.ndarray | None:
    """int32 [N, K]: ids spread over the vocabulary, others in every row; None where a job gives none."""
    if not labels.given:
        return None
    even_K = np.linspace(0, vocab_size - 1, labels.top_k).astype(np.int64)
    return ((even_K + np.arange(num_rows)[:, None]) % vocab_size).astype(np.int32)
