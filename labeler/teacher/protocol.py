"""What a teacher is: token ids in, labeled sequences out.

The records and the protocol that the job drives and that every teacher obeys (`VllmTeacher` and
`FakeTeacher` pass the same conformance tests). Nothing here imports torch, ray or vllm.

Shape legend: T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from labeler.errors import PromptError
from labeler.records import Billed, TeacherDescription, TokenizedPrompt
from logitstore.records import LabeledSequence, LabelRows

if TYPE_CHECKING:
    from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
    from labeler.teacher.response_ends import ResponseEnds


class Teacher(Protocol):
    """An engine with its model loaded, used by one thread of one process."""

    def describe(self) -> TeacherDescription: ...

    def label(self, prompts: Iterable[TokenizedPrompt]) -> Iterator[LabeledSequence | PromptError]:
        """Label `prompts`, each result as soon as it is complete, in any order.

        `prompts` is drawn from as the engine has room, in order (long ones first leaves none to run alone
        at the end). An iterator that had no more is asked again as long as anything is unfinished, so that
        it may bring further work to an engine that is emptying.

        Mode "score" gives one sequence per prompt, "generate" n of them. A prompt, or a sample of it, that
        cannot be labeled gives one `PromptError` *as an item*, so that the others go on; nothing is ever
        left out. Closing the iterator early gives up the unfinished prompts and leaves the teacher usable.

        Raises:
            TeacherDiedError: the engine is dead; every further call raises it too.
        """
        ...

    def billed(self) -> Billed | None:
        """What its server billed so far, from any thread; None where no server is asked."""
        ...

    def close(self) -> None:
        """Free the engine and its processes. Calling it twice does nothing."""
        ...


def usable_tokens(max_model_len: int) -> int:
    """Most tokens of prompt plus response in a vLLM engine of that context: it always samples one token more
    than it scores, so that one position is kept for it. Planner and engine both go by this."""
    return max_model_len - 1


def check_prompt(prompt: TokenizedPrompt, vocab_size: int, max_tokens: int, mode: str) -> PromptError | None:
    """The reason why `prompt` cannot be labeled in `mode`, or None. `max_tokens` is the most it may hold."""
    num_tokens, name = prompt.num_tokens, prompt.record_id
    if num_tokens == 0:
        return PromptError(name, "it holds no token; give it at least one", "empty")
    if (prompt.response_token_ids is None) != (mode == "generate"):
        reason = (
            f'mode "{mode}" and a response that is {"missing" if mode == "score" else "given"} do not fit'
        )
        return PromptError(name, f"{reason}; change labels.mode or the record", "bad_prompt")
    if num_tokens > max_tokens:
        reason = (
            f"it holds {num_tokens} tokens, the teacher takes at most {max_tokens} here (an engine keeps one "
            "position of its context for itself, a response to be written takes one at least); shorten it or "
            "raise teacher.max_model_len"
        )
        return PromptError(name, reason, "too_long")
    if prompt.label_start < 1 or (mode == "score" and prompt.label_start >= num_tokens):
        reason = (
            f"label_start is {prompt.label_start} of {num_tokens} tokens, it must be at least 1 and leave "
            "a token to label; a sequence needs two tokens and a response one"
        )
        return PromptError(name, reason, "empty")
    for ids in (prompt.prompt_token_ids, prompt.response_token_ids, prompt.student_prompt_token_ids):
        if ids is None or len(ids) == 0:
            continue
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= vocab_size:
            reason = (
                f"token id {lowest if lowest < 0 else highest} is outside the teacher's vocabulary of "
                f"{vocab_size}; tokenise with the teacher's own tokenizer"
            )
            return PromptError(name, reason, "bad_token_id")
    return None


def check_given(prompt: TokenizedPrompt, vocab_size: int, labels: LabelsConfig) -> PromptError | None:
    """The reason why the ids that came with a prompt are not those of its rows, or None."""
    given_NK, wanted = prompt.given_ids_NK, (prompt.num_tokens - prompt.label_start, labels.top_k)
    if (given_NK is not None) != bool(labels.given):
        return PromptError(
            prompt.record_id,
            f"it came {'without' if given_NK is None else 'with'} ids for its rows, which are given where "
            "labels.given names a store, and only there; report this",
            "no_given_ids",
        )
    if given_NK is None:
        return None
    if given_NK.shape != wanted:
        reason = f"ids of shape {given_NK.shape} were given for rows of shape {wanted}; give each row its ids"
        return PromptError(prompt.record_id, reason, "no_given_ids")
    highest = int(given_NK.max(initial=-1))
    if highest >= vocab_size or (given_NK.max(axis=1) < 0).any():
        reason = (
            f"a row was given no id, or one outside the teacher's vocabulary of {vocab_size} (the highest is "
            f"{highest}); give ids of the teacher's own tokenizer"
        )
        return PromptError(prompt.record_id, reason, "no_given_ids")
    return None


def labeled_sequence(
    prompt: TokenizedPrompt,
    tokens_T: np.ndarray,
    rows: LabelRows,
    *,
    sample_index: int,
    finish_reason: str,
    num_masked_at_end: int = 0,
) -> LabeledSequence:
    """The finished record of `prompt`, whose `rows` begin at `prompt.label_start`.

    The last `num_masked_at_end` tokens are a stop text, which is not to be learnt.
    """
    loss_mask_N = np.ones(rows.num_rows, bool)
    loss_mask_N[len(loss_mask_N) - num_masked_at_end :] = False
    if prompt.loss_mask_T is not None:
        given_N = prompt.loss_mask_T[prompt.label_start : prompt.label_start + rows.num_rows]
        loss_mask_N[: len(given_N)] = given_N
    return LabeledSequence(
        record_id=prompt.record_id,
        sample_index=sample_index,
        token_ids_T=tokens_T,
        prompt_length=len(prompt.prompt_token_ids),
        label_start=prompt.label_start,
        rows=rows,
        loss_mask_N=loss_mask_N,
        finish_reason=finish_reason,
        student_prompt_ids=prompt.student_prompt_token_ids,
    )


def longest_first(prompts: Sequence[TokenizedPrompt]) -> list[TokenizedPrompt]:
    """`prompts` by falling length, so that no long one is left to run alone at the end."""
    return sorted(prompts, key=lambda prompt: -prompt.num_tokens)


def sample_seed(seed: int, record_id: str, sample_index: int) -> int:
    """31-bit seed of one response: the same whichever engine samples it, and however often."""
    digest = hashlib.blake2b(f"{seed}/{sample_index}/{record_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def build_teacher(
    teacher_config: TeacherConfig,
    labels_config: LabelsConfig,
    sampling_config: SamplingConfig,
    *,
    cores: str | None,
    machines: int = 1,
    ends: ResponseEnds | None = None,
) -> Teacher:
    """Start the teacher a job names, in this process.

    `ends` is where the job's responses end; None finds it from the model's own files and template.

    `cores` binds the process and the engine's threads to logical CPUs, written as vLLM does ("0", "0-3",
    "0,2"); None leaves them alone. It must be set where several CPU engines share a machine: vLLM's own
    choice puts every engine on the same core. On several `machines` this process is an actor in the first
    bundle of a placement group with as many.
    """
    if teacher_config.engine == "fake":
        from labeler.teacher.fake import FakeTeacher

        return FakeTeacher(teacher_config, labels_config, sampling_config, ends=ends)
    if teacher_config.engine == "openai":
        from labeler.teacher.openai.teacher import OpenAiTeacher

        return OpenAiTeacher(teacher_config, labels_config, sampling_config, ends=ends)
    from labeler.teacher.vllm.teacher import VllmTeacher

    return VllmTeacher(
        teacher_config, labels_config, sampling_config, cores=cores, machines=machines, ends=ends
    )
