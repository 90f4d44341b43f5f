"""Arguments of another kind are told by name, not by an AttributeError from within."""

import re
from typing import Any

import pytest
from transformers import LlamaForCausalLM, TrainingArguments, default_data_collator

from logitstore.common.config_file import ConfigError
from tests.trainer.students import tiny_student, tiny_trainer
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import GuardError
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.trainer import OfflineDistillationTrainer


class OwnCollator(DistillationCollator):
    """Was taken, and what it did was left out without a word."""

    def __call__(self, samples):
        return super().__call__(samples)


@pytest.fixture
def made(small_store, tmp_path):
    """A Trainer, with some of its arguments replaced."""

    def make(**replaced: Any) -> OfflineDistillationTrainer:
        args = OfflineDistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[])
        given: dict[str, Any] = {
            "model": tiny_student(),
            "args": args,
            "train_dataset": StreamingLogitDataset(small_store, batch_size=8),
            "data_collator": DistillationCollator(CollateSettings()),
        }
        return OfflineDistillationTrainer(**{**given, **replaced})

    return make


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        ({"model": 5}, "model is a int; give a causal language model"),
        ({"model": LlamaForCausalLM}, "model is the class LlamaForCausalLM itself; give a causal"),
        ({"args": TrainingArguments(use_cpu=True)}, "args is a TrainingArguments; give OfflineDistillation"),
        ({"args": {"max_steps": 2}}, "args is a dict; give OfflineDistillationConfig"),
        ({"data_collator": default_data_collator}, "data_collator is a function; give DistillationCollator("),
        ({"data_collator": None}, "data_collator is a NoneType; give DistillationCollator("),
        ({"data_collator": CollateSettings()}, "data_collator is a CollateSettings; give Distillation"),
        ({"data_collator": DistillationCollator}, "data_collator is the class DistillationCollator itself;"),
        ({"data_collator": OwnCollator(CollateSettings())}, "data_collator is a OwnCollator; give Distill"),
        ({"processing_class": "gpt2"}, "processing_class is a str; give the student's tokenizer"),
        ({"store_losses": [0.5]}, "store_losses is a float; give a LossSettings for each store"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_an_argument_of_another_kind_is_told_by_name(made, replaced, says):
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        made(**replaced)


def test_a_folder_that_is_not_there_is_told_by_name(made):
    with pytest.raises(ConfigError, match=r"^model = './nowhere' is no folder here; correct the path"):
        made(model="./nowhere")


def test_a_frozen_student_may_be_evaluated_and_not_trained(small_store, tmp_path):
    trainer = tiny_trainer(small_store, tmp_path, model=tiny_student().requires_grad_(False))
    assert trainer.evaluate()["eval_kl"] > 0
    with pytest.raises(GuardError, match="no weight of LlamaForCausalLM is trained, as all are frozen"):
        trainer.train()
