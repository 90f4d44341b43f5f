"""A teacher without weights: logits are a pure function of the token prefix.

It obeys the same contract as the real one (the same conformance tests run on both) and sends its logits
through the same column layout, checks and tail arithmetic, so that a job can be tried out where no model,
GPU or vLLM is.

Shape legend: T tokens, N label rows, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import numpy as np

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.errors import PromptError, TeacherDiedError
from labeler.records import TeacherDescription, TokenizedPrompt
from labeler.teacher.label_rows import (
    ColumnLayout,
    check_given_ids,
    columns_from_logits,
    rows_from_columns,
)
from labeler.teacher.protocol import check_given, check_prompt, labeled_sequence, sample_seed
from labeler.teacher.response_ends import ResponseEnds
from logitstore.manifest.fields import TeacherInfo
from logitstore.records import LabeledSequence, LabelRows

END_OF_TURN_ID = 257
"""The id that ends a generated response."""
DEFAULT_MAX_MODEL_LEN = 4096
END_SHARE = 24
"""One prefix in so many has the end of turn as its most likely continuation."""
LOGIT_SCALE = 1.5
LOOK_SEC = 0.05
"""Between two looks at the file of `teacher.fake.slow_while`."""


class FakeTeacher:
    """See `labeler.teacher.protocol.Teacher`."""

    def __init__(
        self,
        teacher_config: TeacherConfig,
        labels_config: LabelsConfig,
        sampling_config: SamplingConfig,
        *,
        ends: ResponseEnds | None = None,
    ) -> None:
        self._settings = teacher_config.fake
        self._labels = labels_config
        self._sampling = sampling_config
        named = ends.token_ids if ends is not None else ()
        self._end_ids = frozenset({END_OF_TURN_ID, *named, *sampling_config.stop_token_ids})
        self._max_model_len = teacher_config.max_model_len or DEFAULT_MAX_MODEL_LEN
        self._layout = ColumnLayout(labels_config.top_k, labels_config.temperatures)
        self._dead = False
        if labels_config.top_k > self._settings.vocab_size:
            raise ValueError(
                f"labels.top_k is {labels_config.top_k}, the teacher's vocabulary has "
                f"{self._settings.vocab_size} ids; set top_k to at most that"
            )
        time.sleep(self._settings.load_sec)

    def describe(self) -> TeacherDescription:
        vocab_size = self._settings.vocab_size
        return TeacherDescription(
            info=TeacherInfo(
                model="fake",
                revision=None,
                fingerprint=f"fake:{vocab_size}",
                dtype="float32",
                quantization=None,
                engine="fake",
                engine_version="1",
                capture="in_engine",
            ),
            vocab_size=vocab_size,
            max_model_len=self._max_model_len,
            exact_temperatures=self._labels.temperatures,
            value_kind="gap_f16",
        )

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        generate = self._labels.mode == "generate"
        for prompt in prompts:
            if self._dead:
                raise TeacherDiedError("the engine has died before; start a new teacher")
            limit = self._max_model_len - 1 if generate else self._max_model_len
            vocab_size = self._settings.vocab_size
            error = check_prompt(prompt, vocab_size, limit, self._labels.mode) or check_given(
                prompt, vocab_size, self._labels
            )
            if error is not None:
                yield error
                continue
            self._die_if_fatal(prompt)
            if not generate:
                yield self._score(prompt)
                continue
            for sample_index in range(self._sampling.n):
                yield self._generate(prompt, sample_index)

    def billed(self) -> None:
        """No server is asked."""

    def close(self) -> None:
        self._dead = True

    def _die_if_fatal(self, prompt: TokenizedPrompt) -> None:
        fatal = self._settings.fatal_token_id
        parts = (prompt.prompt_token_ids, prompt.response_token_ids)
        if fatal is not None and any(part is not None and fatal in part for part in parts):
            self._dead = True
            raise TeacherDiedError(f"a sequence holds the fatal token {fatal}; start a new teacher")

    def _score(self, prompt: TokenizedPrompt) -> LabeledSequence:
        tokens_T = prompt.token_ids
        self._take_time(len(tokens_T))
        rows = self._rows(tokens_T, prompt.label_start, prompt.given_ids_NK)
        return labeled_sequence(prompt, tokens_T, rows, sample_index=0, finish_reason="scored")

    def _take_time(self, num_tokens: int) -> None:
        ends_at = time.monotonic() + self._settings.seconds_per_token * num_tokens
        held_by = self._settings.slow_while
        while (left_sec := ends_at - time.monotonic()) > 0 and (not held_by or os.path.exists(held_by)):
            time.sleep(min(left_sec, LOOK_SEC) if held_by else left_sec)

    def _generate(self, prompt: TokenizedPrompt, sample_index: int) -> LabeledSequence:
        rng = np.random.default_rng(sample_seed(self._sampling.seed, prompt.record_id, sample_index))
        tokens = [int(token) for token in prompt.prompt_token_ids]
        budget = min(self._sampling.max_tokens, self._max_model_len - len(tokens))
        finish_reason, text, num_stop_tokens = "length", b"", 0
        for num_written in range(budget):
            logits_V = self._penalised(self._logits(np.array(tokens))[-1], tokens, prompt.num_tokens)
            may_end = num_written >= self._sampling.min_tokens
            if not may_end:
                logits_V[[token for token in self._end_ids if token < len(logits_V)]] = -np.inf
            token = self._sample(logits_V, rng)
            tokens.append(token)
            if token in self._end_ids:
                finish_reason = "stop"
                break
            text += bytes([token]) if token < 256 else b""
            if not may_end:
                text = b""
            found = next((stop for stop in self._sampling.stop if stop.encode() in text), None)
            if found is not None:
                finish_reason = "stop"
                num_stop_tokens = len(found.encode()) if self._sampling.stop_text == "mask" else 0
                break
        self._take_time(len(tokens))
        tokens_T = np.array(tokens, np.int32)
        rows = self._rows(tokens_T, prompt.label_start)
        return labeled_sequence(
            prompt,
            tokens_T,
            rows,
            sample_index=sample_index,
            finish_reason=finish_reason,
            num_masked_at_end=num_stop_tokens,
        )

    def _penalised(self, logits_V: np.ndarray, tokens: list[int], num_given: int) -> np.ndarray:
        """Logits to sample from, after a sequence whose first `num_given` tokens are the prompt."""
        penalised_V = logits_V.astype(np.float64)
        seen = np.unique(tokens)
        seen = seen[seen < len(penalised_V)]
        factor = self._sampling.repetition_penalty
        penalised_V[seen] = np.where(
            penalised_V[seen] > 0, penalised_V[seen] / factor, penalised_V[seen] * factor
        )
        written, counts = np.unique(np.array(tokens[num_given:], np.int64), return_counts=True)
        penalised_V[written] -= self._sampling.presence_penalty
        penalised_V[written] -= self._sampling.frequency_penalty * counts
        return penalised_V

    def _sample(self, logits_V: np.ndarray, rng: np.random.Generator) -> int:
        if self._sampling.temperature == 0:
            return int(logits_V.argmax())
        scaled_V = logits_V / self._sampling.temperature
        order_V = np.argsort(-scaled_V, kind="stable")
        probability_V = np.exp(scaled_V[order_V] - scaled_V[order_V[0]])
        probability_V[probability_V < self._sampling.min_p] = 0
        probability_V[self._sampling.top_k or len(probability_V) :] = 0
        probability_V /= probability_V.sum()
        kept = int(np.searchsorted(np.cumsum(probability_V), self._sampling.top_p)) + 1
        nucleus = probability_V[:kept] / probability_V[:kept].sum()
        return int(order_V[rng.choice(len(nucleus), p=nucleus)])

    def _rows(self, tokens_T: np.ndarray, label_start: int, given_NK: np.ndarray | None = None) -> LabelRows:
        """Label rows of positions `label_start`.. of a whole sequence, at their given ids if there are."""
        logits_NV = self._logits(tokens_T[:-1], label_start - 1)
        captured = columns_from_logits(logits_NV, tokens_T[label_start:], self._layout, given_NK)
        if given_NK is not None:
            check_given_ids(captured, given_NK)
        return rows_from_columns(captured, self._layout, self._settings.vocab_size)

    def _logits(self, tokens_T: np.ndarray, first: int | None = None) -> np.ndarray:
        """float32 [N, V]: what follows each prefix that ends at position `first`.. (default: the last)."""
        first = len(tokens_T) - 1 if first is None else first
        positions = np.arange(len(tokens_T), dtype=np.uint64)
        with np.errstate(over="ignore"):
            mixed_T = _mix(tokens_T.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + positions)
            prefix_N = _mix(np.cumsum(mixed_T, dtype=np.uint64)[first:])
        word_V = _mix(np.arange(self._settings.vocab_size, dtype=np.uint64))
        uniform_NV = ((_mix(prefix_N[:, None] ^ word_V) >> np.uint64(40)).astype(np.float32) + 0.5) / 2**24
        logits_NV = -np.float32(LOGIT_SCALE) * np.log(uniform_NV)
        ends_N = prefix_N % np.uint64(END_SHARE) == 0
        logits_NV[ends_N, END_OF_TURN_ID] = logits_NV[ends_N].max(axis=1) + 2
        return logits_NV


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: each output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
