"""Answers of the student to held-out prompts, written while it trains, so that one sees it learn.

Shape legend: T tokens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from logitstore.common.config_file import ConfigError
from logitstore.common.whole_file import write_whole
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import TrainingWarning
from trainer.run.file_names import SAMPLES_NAME

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
    """The first ones, as stored, whose answers fit the student's context; of plain text the first token.

    Raises ConfigError where there is none, and says where there are fewer.
    """
    limit = None if context is None else context - max_new_tokens
    prompts = (_prompt(held_out[index]) for index in range(sum(sum(one.lengths) for one in held_out.sources)))
    fitting = (prompt for prompt in prompts if limit is None or len(prompt.token_ids) <= limit)
    found = list(islice(fitting, num_prompts))
    room = "" if limit is None else f" that leave {max_new_tokens} of the student's {context} tokens"
    if not found:
        raise ConfigError(
            f"evaluation.samples = {num_prompts}: there are no held-out prompts{room}; lower "
            f"evaluation.sample_tokens (now {max_new_tokens}), or set evaluation.samples = 0"
        )
    if len(found) < num_prompts:
        warnings.warn(
            f"evaluation.samples = {num_prompts}, but there are only {len(found)} held-out prompts{room}",
            TrainingWarning,
            stacklevel=2,
        )
    return found


def _prompt(sample: Any) -> Prompt:
    sequence = sample.sequence
    length = max(sequence.prompt_length, 1)
    return Prompt(sequence.record_id, tuple(sequence.token_ids_T[:length].tolist()))


@torch.no_grad()
def greedy_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int
) -> Iterator[tuple[str, str]]:
    """(prompt, answer) as text. Every process of a sharded student has to call it, with the same prompts.

    Of the student's own generation settings only its ends count: a penalty on repetition, say, would make
    its answers others than the most probable tokens.
    """
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
    holders = [module for module in model.modules() if "generation_config" in vars(module)]
    own_settings = [module.generation_config for module in holders]
    for module in holders:
        module.generation_config = (
            GenerationConfig()
        )  # transformers would take from it what `settings` leaves
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
        for module, its_own in zip(holders, own_settings, strict=True):
            module.generation_config = its_own
        model.train(was_training)


def _as_list(token_ids: Any) -> list[Any]:
    return list(token_ids) if isinstance(token_ids, list) else [token_ids]


class SampledAnswers(TrainerCallback):
    """Into samples.jsonl, onto standard error and into TensorBoard: at the start, evaluations and the end.

    The file has each step once, of the run as it is: what an earlier start of it did behind the checkpoint
    that it goes on from is taken out.
    """

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
        self._asked_at: set[int] = set()
        self._lines: dict[int, list[Answer]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._asked_at.clear()
        self._lines = _earlier_answers(self._path, state.global_step) if state.global_step else {}
        self._write(given["model"], state, state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._write(given["model"], state, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Where the best student was loaded again, its answers are those of its own step."""
        best = state.best_global_step if args.load_best_model_at_end else None
        self._write(given["model"], state, best or state.global_step)

    def _write(self, model: Any, state: TrainerState, step: int) -> None:
        """The answers after so many steps; on all processes, of which the first writes.

        What was asked before is judged by this process's own steps: others may not see the same file.
        """
        if step in self._asked_at:
            return
        self._asked_at.add(step)
        texts = list(greedy_answers(model, self._tokenizer, self._prompts, self._max_new_tokens))
        answers = [
            Answer(step, prompt.record_id, *text) for prompt, text in zip(self._prompts, texts, strict=True)
        ]
        if not state.is_world_process_zero:
            return
        self._lines[step] = answers
        in_order = (answer for _, of_step in sorted(self._lines.items()) for answer in of_step)
        lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in in_order)
        write_whole(self._path, "".join(lines))
        for answer in answers:
            if self._tell is not None:
                self._tell(f"step {answer.step}, answer to {answer.record_id}: {answer.answer!r}")
            if self._board is not None:
                text = f"{answer.prompt}\n\n**{answer.answer}**"
                self._board.add_text(f"answer to {answer.record_id}", text, answer.step)


def _earlier_answers(path: Path, last_step: int) -> dict[int, list[Answer]]:
    """What an earlier start of the run wrote up to its checkpoint, by step."""
    by_step: dict[int, list[Answer]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                answer = Answer(**json.loads(line))
                if answer.step <= last_step:
                    by_step.setdefault(answer.step, []).append(answer)
    except FileNotFoundError:
        pass
    return by_step
