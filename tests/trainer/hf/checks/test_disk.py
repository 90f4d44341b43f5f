"""Room for checkpoints and the student at the end is looked at before the first step."""

import shutil
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import rotate_checkpoints

from tests.trainer.students import tiny_trainer
from trainer.errors import SettingError
from trainer.hf.checks.disk import _plan, bytes_saved, weight_bytes
from trainer.hf.epochs import Place, saves_to_come

BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "metric_for_best_model": "kl",
    "greater_is_better": False,
    "load_best_model_at_end": True,
}
FIRST_IS_BEST = {**BEST, "greater_is_better": True, "save_strategy": "steps", "save_steps": 2}
"""The KL falls."""
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}


def student(**settings: Any) -> LlamaForCausalLM:
    """Large enough that its tensors are most of what is saved."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_attention_heads=2, **sizes, **settings))


def adapted() -> Any:
    return get_peft_model(
        student(),  # type: ignore[arg-type]
        LoraConfig(r=64, target_modules="all-linear", modules_to_save=["embed_tokens"]),
    )


@pytest.fixture
def free(monkeypatch):
    """Sets what the disk says is free."""

    usage = shutil.disk_usage("/")

    def say(num_bytes: float, total: int = usage.total) -> None:
        told = usage._replace(free=int(num_bytes), total=total)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: told)

    return say


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (student, {"optim": "adamw_torch"}),
        (student, {"optim": "adamw_torch_fused"}),
        (student, {"optim": "adafactor"}),
        (student, {"optim": "sgd"}),
        (student, {"optim": "lion_32bit"}),
        (student, {"optim": "adamw_torch", "save_only_model": True}),
        (lambda: student(tie_word_embeddings=True), {"optim": "adamw_torch"}),
        (lambda: student().bfloat16(), {"optim": "adamw_torch"}),
        (adapted, {"optim": "adamw_torch"}),
        (student, {"trainer": {"optimizers": "momentum"}}),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else getattr(given, "__name__", "made"),
)
def test_what_a_checkpoint_takes_is_known_before(small_store, tmp_path, make, arguments):
    if "trainer" in arguments:
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        arguments = {"model": model, "trainer": {"optimizers": (optimizer, schedule)}}
    trainer = tiny_trainer(small_store, tmp_path, **{"model": make(), **arguments}, **SAVING)
    told = bytes_saved(trainer.args, trainer.model, trainer._given_optimizer)
    trainer.train()
    found = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir()}
    weights = sum(size for name, size in found.items() if name.endswith(".safetensors"))
    assert told.weights == pytest.approx(weights, rel=0.03)
    assert told.optimizer == pytest.approx(found.get("optimizer.pt", 0), rel=0.03, abs=20_000)


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_the_first_step(small_store, tmp_path, free):
    trainer = tiny_trainer(small_store, tmp_path, model=student(), optim="adamw_torch", **SAVING)
    one = bytes_saved(trainer.args, trainer.model).checkpoint
    free(one * 0.99)
    with pytest.raises(SettingError, match=r"weights 1\..* MB, optimizer .* MB.*not one can be saved; make"):
        trainer.train()
    assert trainer.state.global_step == 0
    free(one * 1.01)
    trainer.train()
    free(0)
    tiny_trainer(small_store, tmp_path).train()  # saves nothing


@pytest.mark.parametrize(("limit", "at_once", "num_more"), [(1, 2, 1), (2, 3, 2), (None, 6, 6), (9, 6, 6)])
def test_a_disk_without_room_for_all_that_are_kept_is_said(
    small_store, tmp_path, free, limit, at_once, num_more
):
    """A new checkpoint is whole before the oldest one goes."""
    saving = {**SAVING, "max_steps": 6, "save_total_limit": limit}
    trainer = tiny_trainer(small_store, tmp_path, model=student(), optim="adamw_torch", **saving)
    one = bytes_saved(trainer.args, trainer.model).checkpoint
    free(at_once * one * 0.99)
    with pytest.warns(UserWarning, match=f"for the {at_once} checkpoints that lie there at once"):
        trainer.check_disk()
    free(at_once * one * 1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.check_disk()
    student_bytes = weight_bytes(trainer.model)
    kept = min(limit or 6, 6)
    free(max(at_once * one, kept * one + student_bytes) * 1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.check_disk(student_bytes=student_bytes)
        (tmp_path / "checkpoint-9").mkdir()  # of an earlier start: its bytes are no longer free
        free(num_more * one * 1.01 + student_bytes)
        trainer.check_disk(student_bytes=student_bytes)


def test_a_disk_with_room_for_the_checkpoints_alone_is_said(small_store, tmp_path, free):
    """Not one could be saved, it was said, where only the student at the end cannot."""
    trainer = tiny_trainer(small_store, tmp_path, model=student(), optim="adamw_torch", **SAVING)
    one, student_bytes = bytes_saved(trainer.args, trainer.model).checkpoint, weight_bytes(trainer.model)
    free(one + student_bytes - 1)
    with pytest.raises(SettingError, match="free: the student has no room beside a checkpoint; make room"):
        trainer.check_disk(student_bytes=student_bytes)
    trainer.args.max_steps = 3
    free(3 * one + student_bytes - 1)
    with pytest.warns(UserWarning, match="too little for the student beside the 3 checkpoints that are kept"):
        trainer.check_disk(student_bytes=student_bytes)


def test_a_resumed_training_needs_room_for_what_it_still_saves(small_store, tmp_path, free):
    """It was refused where nothing was left to save, and all its checkpoints were counted again."""
    arguments: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    trainer = tiny_trainer(small_store, tmp_path, max_steps=4, **arguments)
    trainer.train()
    one = bytes_saved(trainer.args, trainer.model).checkpoint
    last = str(tmp_path / "checkpoint-4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free(one - 1)
        tiny_trainer(small_store, tmp_path, max_steps=4, **arguments).check_disk(checkpoint=last)
        free(one)
        tiny_trainer(small_store, tmp_path, max_steps=6, **arguments).check_disk(checkpoint=last)
    free(one - 1)
    with pytest.raises(SettingError, match="not one can be saved"):
        tiny_trainer(small_store, tmp_path, max_steps=6, **arguments).train(resume_from_checkpoint=last)
    with warnings.catch_warnings():  # what lies there goes first
        warnings.simplefilter("error")
        tiny_trainer(small_store, tmp_path, max_steps=4, **arguments).check_disk(is_restart=True)
    free(0, total=0)  # some file systems do not say
    tiny_trainer(small_store, tmp_path, max_steps=6, **arguments).check_disk()


def test_a_guess_refuses_nothing_and_is_said(small_store, tmp_path, free):
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            raise ZeroDivisionError("no weights")

    model = student()
    optimizer = Own(model.parameters(), lr=0.1)
    given = {"optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))}
    trainer = tiny_trainer(small_store, tmp_path, model=model, trainer=given, **SAVING)
    saved = bytes_saved(trainer.args, model, optimizer)
    free(saved.checkpoint - 1)
    words = r"a guess: 2 values of each weight, as it could not be tried \(ZeroDivisionError: no weights\)"
    with pytest.warns(UserWarning, match=words):
        trainer.check_disk()
    free(saved.weights - 1)  # which are known
    with pytest.raises(SettingError, match="not one can be saved"):
        trainer.check_disk()


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_lion_8bit"])
def test_the_state_of_a_paged_optimizer_is_that_of_the_same_without_pages(small_store, tmp_path, optim):
    pytest.importorskip("bitsandbytes")
    told = [
        bytes_saved(tiny_trainer(small_store, tmp_path, optim=one).args, student())
        for one in (optim, optim.removeprefix("paged_"))
    ]
    assert told[0] == told[1]
    assert told[0].guess == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "num_saves", "at_once"),
    [
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 4}, 3, 3),
        ({"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}, 5, 3),
        ({"max_steps": 10, **FIRST_IS_BEST, "save_total_limit": 1}, 5, 3),
        ({"max_steps": 10, **BEST, "save_strategy": "best", "save_total_limit": 1}, 5, 2),
        ({"max_steps": 10, **BEST, "save_strategy": "best"}, 5, 5),
        ({"max_steps": 30, "save_strategy": "epoch"}, 3, 3),
        ({"max_steps": -1, "num_train_epochs": 1.5, "save_strategy": "epoch", "save_total_limit": 1}, 2, 2),
    ],
    ids=str,
)
def test_checkpoints_are_counted_as_they_are_saved(
    small_store, tmp_path, monkeypatch, arguments, num_saves, at_once
):
    """The best one is kept beside the newest, and every epoch of given steps, and every best one, is saved."""
    found: list[int] = []

    def rotate(**settings):
        found.append(len([*tmp_path.glob("checkpoint-*")]))
        rotate_checkpoints(**settings)

    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", rotate)
    trainer = tiny_trainer(small_store, tmp_path, **arguments)
    saves = saves_to_come(trainer.args, trainer.logit_dataset, Place())
    assert (saves.most, _plan(trainer.args, saves, 0).at_once) == (num_saves, at_once)
    trainer.train()
    assert (len(found), max(found)) == (num_saves, at_once)
    end = Place(trainer.state.global_step, trainer.logit_dataset.epoch, trainer.logit_dataset.consumed)
    assert saves_to_come(trainer.args, trainer.logit_dataset, end).most == 0
