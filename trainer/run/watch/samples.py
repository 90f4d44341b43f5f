"""Answers of the student to held-out prompts, written while it trains, so that one sees it learn.

Shape legend: T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.data.dataset import StreamingLogitDataset
from trainer.run.output import SAMPLES_NAME

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a held-out record begins with."""

    record_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of samples.jsonl."""

    step: int
    record_id: str
    prompt: str
    answer: str


def held_out_prompts(
    held_out: StreamingLogitDataset, num_prompts: int, context: int | None, max_new_tokens: int
) -> list[Prompt]:
    """The first ones, as stored, whose answers fit the student's context; of plain text the first token."""
    limit = None if context is None else context - max_new_tokens
    prompts = (_prompt(held_out[index]) for index in range(sum(sum(one.lengths) for one in held_out.sources)))
    fitting = (prompt for prompt in prompts if limit is None or len(prompt.token_ids) <= limit)
    return list(islice(fitting, num_prompts))


def _prompt(sample: Any) -> Prompt:
    sequence = sample.sequence
    length = max(sequence.prompt_length, 1)
    return Prompt(sequence.record_id, tuple(sequence.token_ids_T[:length].tolist()))


@torch.no_grad()
def greedy_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int
) -> Iterator[tuple[str, str]]:
    """(prompt, answer) as text. Every process of a sharded student has to call it, with the same prompts."""
    was_training = model.training
    model.eval()
    own: Any = model.generation_config.eos_token_id
    ends: set[Any] = {*_as_list(tokenizer.eos_token_id), *_as_list(own)} - {None}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),  # of one prompt at a time, nothing is padded
    )
    try:
        for prompt in prompts:
            token_ids_1T = torch.tensor([prompt.token_ids], device=model.device)
            found_1T = model.generate(
                input_ids=token_ids_1T,
                attention_mask=torch.ones_like(token_ids_1T),
                generation_config=settings,
            )
            new_T = found_1T[0, len(prompt.token_ids) :].tolist()
            yield str(tokenizer.decode(list(prompt.token_ids))), str(tokenizer.decode(new_T))
    finally:
        model.train(was_training)


def _as_list(token_ids: Any) -> list[Any]:
    return list(token_ids) if isinstance(token_ids, list) else [token_ids]


class SampledAnswers(TrainerCallback):
    """Into samples.jsonl, onto standard error and into TensorBoard: at the start, evaluations and the end."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        *,
        board: SummaryWriter | None,
        tell: Callable[[str], None] | None,
    ) -> None:
        self._path = folder / SAMPLES_NAME
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_new_tokens = max_new_tokens
        self._board = board
        self._tell = tell
        self._last_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if not state.global_step:  # a resumed run has said it before
            self._write(given["model"], state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._write(given["model"], state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._write(given["model"], state)

    def _write(self, model: Any, state: TrainerState) -> None:
        """The answers after as many steps as `state` says; on all processes, of which the first writes."""
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        texts = list(greedy_answers(model, self._tokenizer, self._prompts, self._max_new_tokens))
        if not state.is_world_process_zero:
            return
        answers = [
            Answer(state.global_step, prompt.record_id, *text)
            for prompt, text in zip(self._prompts, texts, strict=True)
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        for answer in answers:
            if self._tell is not None:
                self._tell(f"step {answer.step}, answer to {answer.record_id}: {answer.answer!r}")
            if self._board is not None:
                text = f"{answer.prompt}\n\n**{answer.answer}**"
                self._board.add_text(f"answer to {answer.record_id}", text, answer.step)
