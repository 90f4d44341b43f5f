"""A teacher that a server holds: completions of token ids over the OpenAI API, many at a time.

Its labels are log-probabilities at temperature 1, marked as vLLM's public API is. The key comes from the
environment alone and is neither kept nor shown.

Shape legend: T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.planning.preflight import context_limits
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import Billed, TeacherDescription, TokenizedPrompt
from labeler.teacher.label_rows import concatenate, rows_from_logprobs
from labeler.teacher.model_identity import model_name
from labeler.teacher.openai.answers import Completion, read_completion
from labeler.teacher.openai.calls import (
    Caller,
    MalformedAnswerError,
    RefusedError,
    RequestFailedError,
    StillMalformedError,
)
from labeler.teacher.openai.texts import TextTeacher
from labeler.teacher.openai.work import Work, WorkQueue
from labeler.teacher.protocol import check_prompt, labeled_sequence, sample_seed
from labeler.teacher.response_ends import ResponseEnds
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import TeacherInfo
from logitstore.records import LabeledSequence

PROBE_TEXT = "The 2nd naïve test, №5: don't re-tokenise 12345.\n"
"""What server and tokenizer must turn into the same ids."""
TRIAL_TRIES = 2

TEXTS_REMEDY = (
    "rows need vLLM's server, which names tokens by their ids; of any other take texts alone: labels.rows = "
    'false, teacher.api.endpoint = "chat"'
)


class OpenAiTeacher:
    """See `labeler.teacher.protocol.Teacher`."""

    def __init__(
        self,
        teacher_config: TeacherConfig,
        labels_config: LabelsConfig,
        sampling_config: SamplingConfig,
        *,
        ends: ResponseEnds | None = None,
    ) -> None:
        """Ask the server for a trial. Raises ServerFailedError, RuntimeError: it does not serve this job."""
        from openai import OpenAI

        self._teacher, self._labels, self._sampling = teacher_config, labels_config, sampling_config
        tokenizer = load_tokenizer(teacher_config, None, sampling_config)
        self._ends = ends if ends is not None else tokenizer.ends
        self._limits = context_limits(teacher_config)
        api = teacher_config.api
        self._served = api.model or teacher_config.model
        # "-" stands for no key, which the client does not allow.
        key = os.environ.get(api.key_variable) or "-"
        self._client = OpenAI(
            base_url=api.base_url,
            api_key=key,
            max_retries=0,
            timeout=api.timeout_sec,
            organization="",
            project="",
        )
        self._caller = Caller(self._client, teacher_config)
        self._threads = ThreadPoolExecutor(api.concurrency, thread_name_prefix="api")
        self._texts: TextTeacher | None = None
        if labels_config.rows:
            self._self_test([*tokenizer.bos_ids, *tokenizer.encode(PROBE_TEXT)])
        else:
            self._texts = TextTeacher(self._caller, self._served, teacher_config, sampling_config, tokenizer)
            self._texts.self_test()

    def describe(self) -> TeacherDescription:
        return TeacherDescription(
            info=TeacherInfo(
                model=model_name(self._served),
                revision=self._teacher.revision,
                fingerprint=f"api:{self._served}",
                dtype="unknown",
                quantization=None,
                engine="openai",
                engine_version="1",
                capture="public_api",
            ),
            vocab_size=self._limits.vocab_size,
            max_model_len=self._limits.max_model_len,
            exact_temperatures=(1.0,),
            value_kind="gap_f16",
        )

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        if self._caller.closing.is_set():
            raise TeacherDiedError("the teacher was closed; start a new one")
        num_samples = self._sampling.n if self._labels.mode == "generate" else 1
        queue = WorkQueue(prompts, num_samples, self._refused)
        running: set[Future[LabeledSequence | PromptError | Work]] = set()
        try:
            while True:
                while len(running) < self._teacher.api.concurrency and (work := queue.next()) is not None:
                    if isinstance(work, PromptError):
                        yield work
                    else:
                        running.add(self._threads.submit(self._result, work))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    if isinstance(result, Work):
                        queue.put_back(result)
                    else:
                        yield result
        finally:
            for future in running:
                future.cancel()

    def billed(self) -> Billed:
        return self._caller.billed

    def close(self) -> None:
        self._caller.closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _refused(self, prompt: TokenizedPrompt) -> PromptError | None:
        limit = self._limits.max_model_len - (1 if self._labels.mode == "generate" else 0)
        return check_prompt(prompt, self._limits.vocab_size, limit, self._labels.mode)

    def _result(self, work: Work) -> LabeledSequence | PromptError | Work:
        """On a thread of its own: ask, and make a sequence of the answer; `work` is to be asked once more.

        A request at which the server fails in two rounds, while it answers another, is itself at fault, and
        the others of its unit are not lost with it. Raises ServerFailedError where it answers none, or was
        busy, late or out of reach: it may take short requests and not the long ones of labels.
        """
        try:
            return self._asked(work)
        except RequestFailedError as error:
            self._try_another()
            if not work.is_second_round:
                return work
            reason = f"failed in two rounds, and another request was answered after each: {error}"
            return PromptError(work.prompt.record_id, reason, "server_failed", self._sample_of(work))

    def _try_another(self) -> None:
        """Raises ServerFailedError: the server does not answer what it answered at the start either."""
        request = {"model": self._served, "prompt": PROBE_TEXT, "max_tokens": 1, "temperature": 0.0}
        if self._texts is not None:
            request = self._texts.trial()
        with suppress(RefusedError):  # also an answer
            self._caller.complete(request, 1, lambda answer: answer, TRIAL_TRIES)

    def _sample_of(self, work: Work) -> int | None:
        return work.sample_index if self._labels.mode == "generate" else None

    def _asked(self, work: Work) -> LabeledSequence | PromptError:
        prompt, sample_index = work.prompt, self._sample_of(work)
        if self._texts is not None:
            return self._texts.written(prompt, work.sample_index)
        try:
            if prompt.response_token_ids is not None:
                return self._scored(work, prompt.token_ids, "scored")
            return self._written(work)
        except RefusedError as error:
            return PromptError(prompt.record_id, error.reason, error.kind, sample_index)
        except InvalidLabelsError as error:
            return PromptError(prompt.record_id, str(error), "bad_labels", sample_index)

    def _scored(self, work: Work, ids_T: np.ndarray, finish_reason: str) -> LabeledSequence:
        top_k = self._labels.top_k
        given = self._ask(ids_T, {"max_tokens": 1, "temperature": 0.0}, with_given=True).given
        rows = rows_from_logprobs(
            given.slice(work.prompt.label_start - 1, len(ids_T) - 1), top_k, self._limits.vocab_size
        )
        return labeled_sequence(
            work.prompt, ids_T, rows, sample_index=work.sample_index, finish_reason=finish_reason
        )

    def _written(self, work: Work) -> LabeledSequence:
        prompt, at_decode = work.prompt, self._labels.label_at != "rescore"
        given_T = prompt.prompt_token_ids.astype(np.int32)
        with_given = at_decode and prompt.label_start < len(given_T)
        answer = self._ask(given_T, self._sampling_of(work), with_given=with_given, with_written=at_decode)
        ids_T = np.concatenate([given_T, np.array(answer.written_ids, np.int32)])
        if not at_decode:
            return self._scored(work, ids_T, answer.finish_reason)
        parts = [answer.written]
        if with_given:
            parts.insert(0, answer.given.slice(prompt.label_start - 1, len(given_T) - 1))
        rows = rows_from_logprobs(concatenate(parts), self._labels.top_k, self._limits.vocab_size)
        return labeled_sequence(
            prompt, ids_T, rows, sample_index=work.sample_index, finish_reason=answer.finish_reason
        )

    def _sampling_of(self, work: Work) -> dict[str, Any]:
        sampling = self._sampling
        room = self._limits.max_model_len - len(work.prompt.prompt_token_ids)
        extra = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "min_tokens": min(sampling.min_tokens, room),
            "stop_token_ids": list(dict.fromkeys([*self._ends.token_ids, *sampling.stop_token_ids])),
            "skip_special_tokens": False,
        }
        return {
            "max_tokens": min(sampling.max_tokens, room),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": sample_seed(sampling.seed, work.prompt.record_id, work.sample_index),
            "extra_body": extra,
        }

    def _ask(
        self,
        given_T: np.ndarray,
        settings: dict[str, Any],
        *,
        with_given: bool = False,
        with_written: bool = False,
    ) -> Completion:
        top_k, given_ids = self._labels.top_k, given_T.tolist()
        extra = {
            **settings.get("extra_body", {}),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }
        if with_given:
            extra["prompt_logprobs"] = top_k
        request = {**settings, "model": self._served, "prompt": given_ids, "extra_body": extra}
        if with_written:
            request["logprobs"] = top_k
        return self._caller.complete(
            request,
            len(given_ids) + settings["max_tokens"],
            lambda answer: read_completion(
                answer, given_ids, top_k, with_given=with_given, with_written=with_written
            ),
        )

    def _self_test(self, probe_ids: list[int]) -> None:
        """The server has this tokenizer and gives rows of the asked width, or RuntimeError in words."""
        request = {"model": self._served, "prompt": PROBE_TEXT, "max_tokens": 1, "temperature": 0.0}
        request["extra_body"] = {"return_token_ids": True}
        where = f"the server at {self._teacher.api.base_url}"
        try:
            seen = self._caller.complete(request, len(probe_ids) + 1, _ids_of_prompt)
        except StillMalformedError as error:
            raise RuntimeError(f"{where} gives no rows: {error}; {TEXTS_REMEDY}") from None
        if seen != probe_ids:
            raise RuntimeError(
                f"{where} turns a text into {seen[:8]}..., the tokenizer of teacher.model = "
                f"{self._teacher.model!r} into {probe_ids[:8]}...: name the model that the server serves"
            )
        try:
            ids_T = np.array(probe_ids, np.int32)
            answer = self._ask(ids_T, {"max_tokens": 1, "temperature": 0.0}, with_given=True)
            rows_from_logprobs(answer.given, self._labels.top_k, self._limits.vocab_size)
        except RefusedError as error:
            raise RuntimeError(
                f"{where} gives no rows of labels.top_k = {self._labels.top_k}: {error.reason}; lower "
                "labels.top_k, or start vLLM's server with a higher --max-logprobs"
            ) from None
        except StillMalformedError as error:
            raise RuntimeError(f"{where} gives no rows: {error}; {TEXTS_REMEDY}") from None


def _ids_of_prompt(answer: Any) -> list[int]:
    choices = getattr(answer, "choices", None)
    ids = (choices[0].model_extra or {}).get("prompt_token_ids") if choices else None
    if not isinstance(ids, list):
        raise MalformedAnswerError(
            "the answer does not hold the prompt's token ids; rows need a server that knows "
            "return_token_ids, as vLLM's does"
        )
    return ids
