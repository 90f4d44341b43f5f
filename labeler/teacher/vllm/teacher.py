"""The real teacher: one vLLM engine in this process or below it.

Shape legend: T tokens, N label rows, K stored entries.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import TeacherDescription, TokenizedPrompt
from labeler.teacher.engine_sizes import SPARE_SEQUENCES
from labeler.teacher.known_vllm import RUNNERS, capture_refusal, given_refusal
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.model_identity import find_model_folder, model_fingerprint, model_name
from labeler.teacher.protocol import usable_tokens
from labeler.teacher.response_ends import ResponseEnds
from labeler.teacher.vllm.engine import (
    engine_args,
    head_choice,
    prepare_process,
    start_engine,
    stop_engine,
)
from labeler.teacher.vllm.feed import RequestFeed
from labeler.teacher.vllm.requests import EngineLimits, Requests
from labeler.teacher.vllm.self_test import mass_fault, self_test_work
from logitstore.manifest.fields import TeacherInfo
from logitstore.records import LabeledSequence

if TYPE_CHECKING:
    from labeler.teacher.vllm.machines import Followers

logger = logging.getLogger(__name__)


class VllmTeacher:
    """See `labeler.teacher.protocol.Teacher`."""

    _requests: Requests
    _feed: RequestFeed

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
        self._feed = RequestFeed(self._engine, self._followers)
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
        in_halves = layout is not None and self._dtype_of_logits() in ("bfloat16", "float16")
        value_kind = "logit_f16" if in_halves else "gap_f16"
        self._requests = Requests(
            labels, self._sampling, layout, limits, self._ends.token_ids, keeps_arrays, decode, value_kind
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
        self._feed.end("it was closed")
        if self._followers is not None:
            self._followers.expect_end()
        stop_engine(engine)
        if self._followers is not None:
            self._followers.close()

    def _refusal(self, labels: LabelsConfig) -> str | None:
        import vllm

        found = [capture_refusal(vllm.__version__, runner) for runner in RUNNERS]
        if labels.given:
            found += [given_refusal(runner) for runner in RUNNERS]
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
        """What is wrong with the rows of a fixed prompt, or None."""
        requests = self._requests
        waiting = deque([self_test_work(requests.labels, requests.limits)])
        (result,) = self._feed.run(requests, iter(()), waiting)
        if isinstance(result, PromptError):
            return f"the self-test failed: {result.reason}"
        return mass_fault(result.rows, requests.exact_temperatures)

    def _dtype_of_logits(self) -> str:
        config = self._engine.vllm_config.model_config
        model_dtype, head_dtype = (
            str(dtype).removeprefix("torch.") for dtype in (config.dtype, config.head_dtype)
        )
        return self._head.dtype_of_logits(model_dtype, head_dtype)

    def _describe(self) -> TeacherDescription:
        import vllm

        model, requests = self._engine.vllm_config.model_config, self._requests
        return TeacherDescription(
            info=TeacherInfo(
                model=model_name(self._teacher.model),
                revision=self._teacher.revision,
                fingerprint=model_fingerprint(self._folder),
                dtype=self._dtype_of_logits(),
                quantization=model.quantization,
                engine="vllm",
                engine_version=vllm.__version__,
                capture="public_api" if requests.layout is None else "in_engine",
            ),
            vocab_size=requests.limits.vocab_size,
            max_model_len=requests.limits.max_tokens,
            exact_temperatures=requests.exact_temperatures,
            value_kind=requests.value_kind,
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

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        yield from self._feed.run(self._requests, iter(prompts), deque())
