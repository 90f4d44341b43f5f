"""Answers in samples.jsonl: each step once, of the student that the step names, greedy whatever it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, TrainerControl, TrainerState

from logitstore.common.config_file import ConfigError
from tests.trainer.students import tiny_student
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.run.config import load_config
from trainer.run.student import load_tokenizer
from trainer.run.train import train
from trainer.run.watch.samples import Prompt, SampledAnswers, greedy_answers, held_out_prompts

PROMPTS = (Prompt("a", (3, 4, 5)), Prompt("b", (6,)))
NEW_TOKENS = 6
GIVEN = (
    "training.tensorboard=false", "training.save_steps=2", "evaluation.steps=2", "evaluation.before=false",
    "evaluation.samples=2", f"evaluation.sample_tokens={NEW_TOKENS}",
)  # fmt: skip


class Run:
    """The callback as the Trainer calls it, over students that the test chooses."""

    def __init__(self, folder: Path, tokenizer: Any, **arguments: Any) -> None:
        self.callback = SampledAnswers(folder, tokenizer, PROMPTS, NEW_TOKENS, board=None, tell=None)
        self.arguments = OfflineDistillationConfig(output_dir=str(folder / "checkpoints"), **arguments)
        self.state = TrainerState(is_world_process_zero=True)
        self._path = folder / "samples.jsonl"

    def call(self, event: str, step: int, model: Any) -> list[int]:
        """The steps in the file after it."""
        self.state.global_step = step
        getattr(self.callback, event)(self.arguments, self.state, TrainerControl(), model=model)
        return [line["step"] for line in self.lines()]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def tokenizer(config: Path) -> Any:
    settings = load_config(str(config), [])
    return load_tokenizer(settings.student, settings.data.stores)


@pytest.mark.parametrize(("context", "sample_tokens", "num_asked"), [(64, 64, 2), (None, 5, 2), (40, 32, 0)])
def test_prompts_that_are_not_there_or_do_not_fit_are_said(
    small_store: Path, context: int | None, sample_tokens: int, num_asked: int
) -> None:
    """A run without a single answer had asked for some, and was told nothing."""
    held_out = StreamingLogitDataset(small_store, held_out=HeldOut(0.2, "held_out"))
    if context == sample_tokens:
        with pytest.raises(ConfigError, match="no held-out prompts that leave 64 of the student's 64 tokens"):
            held_out_prompts(held_out, 2, context, sample_tokens)
        return
    assert len(held_out_prompts(held_out, num_asked or 3, context, sample_tokens)) == (num_asked or 3)
    with pytest.warns(UserWarning, match=r"evaluation.samples = 99, but there are only \d+ held-out prompts"):
        assert 0 < len(held_out_prompts(held_out, 99, context, sample_tokens)) < 99


def test_a_run_begun_anew_after_a_kill_has_each_step_once(tmp_path: Path, tokenizer: Any) -> None:
    for _ in range(2):
        run = Run(tmp_path, tokenizer)
        assert run.call("on_train_begin", 0, tiny_student()) == [0, 0]
        assert run.call("on_evaluate", 2, tiny_student(seed=2)) == [0, 0, 2, 2]


def test_a_resumed_run_takes_out_what_came_after_its_checkpoint(tmp_path: Path, tokenizer: Any) -> None:
    first = Run(tmp_path, tokenizer)
    for step in (0, 2, 4):
        first.call("on_evaluate" if step else "on_train_begin", step, tiny_student(seed=step))
    was = first.lines()
    second = Run(tmp_path, tokenizer)
    assert second.call("on_train_begin", 2, tiny_student(seed=2)) == [0, 0, 2, 2]
    assert second.call("on_evaluate", 4, tiny_student(seed=5)) == [0, 0, 2, 2, 4, 4]
    found = second.lines()
    assert found[:4] == was[:4]
    assert found[4:] != was[4:]


def test_a_resumed_run_may_find_no_file(tmp_path: Path, tokenizer: Any) -> None:
    assert Run(tmp_path, tokenizer).call("on_train_begin", 2, tiny_student()) == [2, 2]


def test_a_separator_of_lines_within_an_answer_is_read_again(tmp_path: Path, tokenizer: Any) -> None:
    line = {"step": 0, "record_id": "a", "prompt": "p", "answer": "one\u2028two\u0085three"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    run = Run(tmp_path, tokenizer)
    run.call("on_train_begin", 2, tiny_student())
    assert run.lines()[0] == line


def test_the_best_students_answers_are_said_of_its_own_step(tmp_path: Path, tokenizer: Any) -> None:
    how: dict[str, Any] = {"eval_steps": 2, "save_steps": 2, "metric_for_best_model": "kl"}
    run = Run(
        tmp_path, tokenizer, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", **how
    )
    run.call("on_train_begin", 0, tiny_student())
    run.call("on_evaluate", 2, tiny_student(seed=2))
    run.state.best_global_step = 2
    assert run.call("on_train_end", 5, tiny_student(seed=2)) == [0, 0, 2, 2]


def test_answers_are_the_most_probable_tokens_whatever_the_student_prefers(tokenizer: Any) -> None:
    """Its file of generation settings may bring penalties, forbidden tokens and sampling."""
    model: Any = tiny_student()
    with torch.no_grad():  # what it has said, it likes: a penalty on repetition would show
        model.lm_head.weight.copy_(model.model.embed_tokens.weight * 8)
    model.generation_config.eos_token_id = None
    plain = list(greedy_answers(model, tokenizer, PROMPTS, NEW_TOKENS))
    expected = torch.tensor([PROMPTS[0].token_ids])
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            token_11 = model(expected).logits[:, -1:].argmax(-1)
        expected = torch.cat([expected, token_11], dim=1)
    answer = tokenizer.decode(expected[0, 3:].tolist())
    assert plain[0][1] == answer
    model.generation_config = GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[int(expected[0, 3])], num_beams=3
    )
    assert list(greedy_answers(model, tokenizer, PROMPTS, NEW_TOKENS)) == plain
    assert model.generation_config.repetition_penalty == 5.0, "the student keeps its own settings"


@pytest.mark.slow
def test_the_last_answers_of_a_run_are_the_saved_students(config: Path, tmp_path: Path) -> None:
    """With the best of the checkpoints loaded at the end; the rate grows, so each step makes it worse."""
    rising = ["training.max_steps=6", "training.learning_rate=30", "training.warmup_steps=5"]
    given = [*GIVEN, *rising, "evaluation.best=kl"]
    settings = load_config(str(config), given)
    train(settings, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open(encoding="utf-8")]
    tokenizer = load_tokenizer(settings.student, settings.data.stores)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    assert best < 6
    vocabulary = tokenizer.get_vocab()
    prompts = [tuple(vocabulary[word] for word in line["prompt"].split()) for line in lines[:2]]
    found = greedy_answers(saved, tokenizer, [Prompt("", ids) for ids in prompts], NEW_TOKENS)
    assert [answer for _, answer in found] == [line["answer"] for line in lines if line["step"] == best]
    assert [line["step"] for line in lines] == [0, 0, 2, 2, 4, 4, 6, 6]
