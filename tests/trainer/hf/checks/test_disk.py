"""Room for checkpoints and the student at the end is looked at before the first step."""

import shutil
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer.students import tiny_trainer
from trainer.errors import SettingError
from trainer.hf.checks.disk import bytes_saved, weight_bytes

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

    def say(num_bytes: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(num_bytes)))

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


@pytest.mark.parametrize(("limit", "at_once"), [(1, 2), (2, 3), (None, 6), (9, 6)])
def test_a_disk_without_room_for_all_that_are_kept_is_said(small_store, tmp_path, free, limit, at_once):
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
    with pytest.warns(UserWarning, match=f"and the student at the end .* for the {at_once} checkpoints"):
        trainer.check_disk(student_bytes=weight_bytes(trainer.model))
    (tmp_path / "checkpoint-3").mkdir()  # of an earlier start: its bytes are no longer free
    trainer.check_disk(student_bytes=weight_bytes(trainer.model))
