"""The real teacher: one vLLM engine in this process or below it.

Shape legend: T tokens, N label rows, K stored entries.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from labeler.config import LabelsConfig, TeacherConfig
from labeler.label_rows import (
    CapturedColumns,
    ColumnLayout,
    concatenate,
    rows_from_columns,
    rows_from_logprobs,
)
from labeler.model_identity import end_token_ids, find_model_folder, model_fingerprint, model_name
from labeler.teacher import (
    PromptError,
    TeacherDescription,
    TeacherDiedError,
    TokenizedPrompt,
    check_prompt,
    labeled_sequence,
    sample_seed,
)
from labeler.vllm_engine import engine_args, prepare_process, start_engine, stop_engine
from logitstore.errors import InvalidLabelsError
from logitstore.manifest import TeacherInfo
from logitstore.records import LabeledSequence, LabelRows

logger = logging.getLogger(__name__)

QUEUED_BATCHES = 4
"""Full engine steps of tokens handed to the engine at a time: enough never to starve it, and bounded."""
SELF_TEST_TOKENS = 16
MASS_TOLERANCE = 1e-4
"""How far head and tail may miss the whole, in nats, in the self-test."""


@dataclass(slots=True)
class Work:
    """One request on its way through the engine."""

    prompt: TokenizedPrompt
    sample_index: int
    tokens_T: np.ndarray
    """int32, what the engine is given."""
    stage: Literal["score", "decode"]
    finish_reason: str = "scored"


class VllmTeacher:
    """See `labeler.teacher.Teacher`."""

    def __init__(
        self, teacher_config: TeacherConfig, labels_config: LabelsConfig, *, cores: str | None = None
    ) -> None:
        """Start the engine and test it.

        Raises:
            FileNotFoundError: no such model.
            RuntimeError: `capture = "in_engine"` and the capture does not work here.
        """
        prepare_process(teacher_config, cores)
        self._teacher = teacher_config
        self._labels = labels_config
        self._folder = find_model_folder(teacher_config.model, teacher_config.revision)
        self._end_ids = end_token_ids(self._folder)
        self._dead: str | None = None
        self._next_request = 0
        self._engine: Any = None
        if not self._start_in_engine():
            self._start_public_api()
        self._description = self._describe()

    def _start_in_engine(self) -> bool:
        """Start with the capture inside the engine; False, after saying why, where that cannot be had."""
        if self._teacher.capture == "public_api":
            return False
        self._layout: ColumnLayout | None = ColumnLayout(self._labels.top_k, self._labels.temperatures)
        reason = self._refusal()
        if reason is None:
            self._start(self._layout.num_logprobs)
            reason = self._install() or self._self_test()
        if reason is None:
            return True
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
        if self._engine is not None:
            stop_engine(self._engine)
            self._engine = None
        return False

    def _start_public_api(self) -> None:
        self._layout = None
        self._start(self._labels.top_k)
        reason = self._self_test()
        if reason is not None:
            self.close()
            raise RuntimeError(f"the engine's labels are wrong: {reason}; check the model and its dtype")

    def _start(self, num_logprobs: int) -> None:
        from labeler.vllm_outputs import keep_arrays

        in_engine = self._layout is not None
        self._arrays = keep_arrays()
        if not self._arrays:
            logger.warning("this vLLM's LogprobsProcessor is unknown: label rows go through lists, slower")
        arguments = engine_args(self._teacher, self._labels, self._folder, num_logprobs, in_engine=in_engine)
        self._engine = start_engine(arguments)
        self._num_logprobs = num_logprobs
        config = self._engine.vllm_config
        self._vocab_size: int = config.model_config.get_vocab_size()
        # The engine always samples one token more than it scores.
        self._max_tokens: int = config.model_config.max_model_len - 1
        self._step_tokens: int = config.scheduler_config.max_num_batched_tokens
        self._max_requests: int = config.scheduler_config.max_num_seqs * 5 // 4
        if self._labels.top_k > self._vocab_size:
            raise ValueError(
                f"labels.top_k is {self._labels.top_k}, the teacher's vocabulary has {self._vocab_size} ids; "
                "set top_k to at most that"
            )

    def _refusal(self) -> str | None:
        import vllm

        from labeler.vllm_capture import refusal

        return refusal(vllm.__version__, "v1") or refusal(vllm.__version__, "v2")

    def _install(self) -> str | None:
        arguments = (self._labels.top_k, list(self._labels.temperatures))
        answers = self._engine.collective_rpc("penumbra_install", args=arguments)
        return next((answer["refusal"] for answer in answers if answer["refusal"]), None)

    def _self_test(self) -> str | None:
        """Score a fixed prompt; what is wrong with its rows, or None."""
        ids_T = np.linspace(0, self._vocab_size - 1, SELF_TEST_TOKENS, dtype=np.int32)
        ids_T = ids_T[: self._max_tokens]
        prompt = TokenizedPrompt("self-test", ids_T[:0], ids_T, 1)
        results = list(self._run(iter(()), deque([Work(prompt, 0, ids_T, "score")])))
        result = results[0]
        if isinstance(result, PromptError):
            return f"the self-test failed: {result.reason}"
        rows = result.rows
        for index, temperature in enumerate(self._exact_temperatures):
            head_N = np.logaddexp.reduce(rows.logits_NK / temperature, axis=1)
            tail_N = rows.log_tail_mass_NM[:, index] + rows.logsumexp_NM[:, index]
            miss = np.abs(np.logaddexp(head_N, tail_N) - rows.logsumexp_NM[:, index]).max()
            if not miss < MASS_TOLERANCE:
                return f"head and tail miss the whole by {miss:.2g} nats at T={temperature} in the self-test"
        return None

    @property
    def _exact_temperatures(self) -> tuple[float, ...]:
        return (1.0,) if self._layout is None else self._labels.temperatures

    def _describe(self) -> TeacherDescription:
        import vllm

        model = self._engine.vllm_config.model_config
        dtype = (
            "float32" if self._teacher.head_dtype == "float32" else str(model.dtype).removeprefix("torch.")
        )
        exact_in_f16 = self._layout is not None and dtype in ("bfloat16", "float16")
        return TeacherDescription(
            info=TeacherInfo(
                model=model_name(self._teacher.model),
                revision=self._teacher.revision,
                fingerprint=model_fingerprint(self._folder),
                dtype=dtype,
                quantization=model.quantization,
                engine="vllm",
                engine_version=vllm.__version__,
                capture="public_api" if self._layout is None else "in_engine",
            ),
            vocab_size=self._vocab_size,
            max_model_len=self._max_tokens,
            exact_temperatures=self._exact_temperatures,
            value_kind="logit_f16" if exact_in_f16 else "gap_f16",
        )

    def describe(self) -> TeacherDescription:
        return self._description

    def change_labels(self, labels_config: LabelsConfig) -> None:
        """Label otherwise from now on with the same engine; no iterator of `label` may be open.

        The engine keeps its caches and limits: K and the temperatures may only take as many columns as
        it was started with, and stop strings need a teacher started with some.
        """
        layout = ColumnLayout(labels_config.top_k, labels_config.temperatures)
        num_logprobs = labels_config.top_k if self._layout is None else layout.num_logprobs
        most = self._engine.vllm_config.model_config.max_logprobs
        if num_logprobs > most:
            raise ValueError(
                f"K={labels_config.top_k} and {len(labels_config.temperatures)} temperatures take "
                f"{num_logprobs} columns, the engine was started for {most}; start a new teacher"
            )
        self._labels, self._num_logprobs = labels_config, num_logprobs
        if self._layout is not None:
            self._layout = layout
            self._install()
        self._description = self._describe()

    @property
    def engine(self) -> Any:
        """vLLM's own `LLMEngine`, for measurements and tests."""
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            stop_engine(self._engine)
            self._engine = None
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
                    result = self._result(work, output)
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
        while len(running) < self._max_requests:
            if running and tokens >= QUEUED_BATCHES * self._step_tokens:
                return
            if not waiting:
                prompt = next(prompts, None)
                if prompt is None:
                    return
                error = self._refused(prompt)
                if error is not None:
                    yield error
                    continue
                waiting.extend(self._works_of(prompt))
            work = waiting.popleft()
            request_id = f"{self._next_request}"
            self._next_request += 1
            refusal = self._add(request_id, work)
            if refusal is not None:
                yield _error(work, f"vLLM refuses it: {refusal}", "bad_prompt")
                continue
            running[request_id] = work
            tokens += len(work.tokens_T) if work.stage == "score" else 0

    def _refused(self, prompt: TokenizedPrompt) -> PromptError | None:
        # A response needs room for one token.
        limit = self._max_tokens - 1 if self._labels.mode == "generate" else self._max_tokens
        return check_prompt(prompt, self._vocab_size, limit, self._labels.mode)

    def _works_of(self, prompt: TokenizedPrompt) -> list[Work]:
        """The requests that a prompt makes."""
        if prompt.response_token_ids is None:
            tokens_T = prompt.prompt_token_ids.astype(np.int32)
            return [Work(prompt, index, tokens_T, "decode") for index in range(self._labels.n)]
        parts = [prompt.prompt_token_ids, prompt.response_token_ids]
        return [Work(prompt, 0, np.concatenate(parts).astype(np.int32), "score")]

    def _add(self, request_id: str, work: Work) -> str | None:
        """Hand one request over; why vLLM will not have it, or None."""
        from vllm.exceptions import VLLMClientError

        self._raise_if_dead()
        prompt = {"prompt_token_ids": work.tokens_T.tolist()}
        try:
            self._engine.add_request(request_id, prompt, self._sampling(work))
        except (VLLMClientError, ValueError) as error:
            return str(error)
        except Exception as error:
            raise self._died(error) from error
        return None

    def _sampling(self, work: Work) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"output_kind": RequestOutputKind.FINAL_ONLY, "flat_logprobs": True, "skip_clone": True}
        if work.stage == "score":
            # prompt_logprobs must be given to the constructor: it switches the prefix cache off there.
            return SamplingParams(
                temperature=0.0, max_tokens=1, detokenize=False, prompt_logprobs=self._num_logprobs, **common
            )
        labels = self._labels
        seed = (
            sample_seed(labels.seed, work.prompt.record_id, work.sample_index) if labels.temperature else None
        )
        at_decode = self._labels_at_decode
        prompt_rows = at_decode and work.prompt.label_start < len(work.tokens_T)
        return SamplingParams(
            temperature=labels.temperature,
            top_p=labels.top_p,
            max_tokens=min(labels.max_tokens, self._max_tokens - len(work.tokens_T)),
            seed=seed,
            stop=list(labels.stop) or None,
            stop_token_ids=list(self._end_ids),
            detokenize=bool(labels.stop),
            logprobs=self._num_logprobs if at_decode else None,
            prompt_logprobs=self._num_logprobs if prompt_rows else None,
            **common,
        )

    @property
    def _labels_at_decode(self) -> bool:
        if self._labels.stop and not self._arrays:
            # To find stop strings vLLM turns every id in its own lists into text; sentinels have none.
            return False
        return self._labels.label_at != "rescore"

    def _step(self) -> list[Any]:
        """One step of the engine; the requests that finished in it."""
        self._raise_if_dead()
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:
            raise self._died(error) from error

    def _died(self, error: Exception) -> TeacherDiedError:
        """EngineDeadError, or in-process whatever the engine stumbled over: no request survives either."""
        self._dead = f"{type(error).__name__}: {error}"
        return TeacherDiedError(f"the engine died ({self._dead}); start a new teacher")

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise TeacherDiedError(f"the engine is gone ({self._dead}); start a new teacher")

    def _result(self, work: Work, output: Any) -> LabeledSequence | PromptError | Work:
        """What a finished request gives: a sequence, the reason why not, or a response to score."""
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            reason = f"the engine ended it with {completion.finish_reason!r}; look at the engine's log"
            return _error(work, reason, "bad_prompt")
        tokens_T, finish_reason = work.tokens_T, work.finish_reason
        if work.stage == "decode":
            tokens_T = np.concatenate([tokens_T, np.asarray(completion.token_ids, np.int32)])
            finish_reason = completion.finish_reason
            if not self._labels_at_decode:
                return Work(work.prompt, work.sample_index, tokens_T, "score", finish_reason)
        try:
            rows = self._rows(work, output, tokens_T)
        except InvalidLabelsError as error:
            return _error(work, str(error), "bad_labels")
        return labeled_sequence(
            work.prompt, tokens_T, rows, sample_index=work.sample_index, finish_reason=finish_reason
        )

    def _rows(self, work: Work, output: Any, tokens_T: np.ndarray) -> LabelRows:
        """Rows of positions `label_start`.. of a finished sequence."""
        from labeler.vllm_outputs import columns_of

        width = self._num_logprobs + 1
        given, start = len(work.tokens_T), work.prompt.label_start
        parts: list[CapturedColumns] = []
        if start < given:
            if output.num_cached_tokens:
                raise InvalidLabelsError(
                    f"{output.num_cached_tokens} positions came from the prefix cache, which keeps no "
                    "logits; set enable_prefix_caching = false in engine_args"
                )
            prompt_rows = columns_of(output.prompt_logprobs, width)
            _require_rows(prompt_rows, given - 1)
            parts.append(prompt_rows.slice(start - 1, given - 1))
        if work.stage == "decode":
            response_rows = columns_of(output.outputs[0].logprobs, width)
            _require_rows(response_rows, len(tokens_T) - given)
            parts.append(response_rows)
        captured = concatenate(parts)
        if not np.array_equal(captured.token_ids_NC[:, 0], tokens_T[len(tokens_T) - captured.num_rows :]):
            raise InvalidLabelsError("the engine's rows are not those of the sequence's tokens")
        if self._layout is None:
            return rows_from_logprobs(captured, self._labels.top_k, self._vocab_size)
        return rows_from_columns(captured, self._layout, self._vocab_size)


def _error(work: Work, reason: str, kind: str) -> PromptError:
    return PromptError(work.prompt.record_id, reason, kind, work.sample_index)


def _require_rows(captured: CapturedColumns, expected: int) -> None:
    if captured.num_rows != expected:
        raise InvalidLabelsError(
            f"the engine returned {captured.num_rows} label rows where {expected} positions were asked for; "
            "report the engine's version and arguments"
        )
