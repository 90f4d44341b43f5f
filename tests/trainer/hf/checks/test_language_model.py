"""A student that sees what it is to predict, or predicts nothing, is refused; causal ones of any kind pass."""

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma3TextConfig,
)

from tests.trainer.hf.checks.test_packing_check import COMMON, REFUSED, RIGHT, cases, student
from tests.trainer.students import tiny_student, tiny_trainer
from trainer.errors import GuardError
from trainer.hf.checks.language_model import check_causal, check_has_head

BERT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
T5: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
XLNET: dict[str, Any] = {"vocab_size": 64, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}


def bidirectional() -> list[Any]:
    torch.manual_seed(0)
    both_ways: dict[str, Any] = {**COMMON, "sliding_window": 8, "use_bidirectional_attention": True}
    return [
        AutoModelForMaskedLM.from_config(BertConfig(**BERT)),
        AutoModelForCausalLM.from_config(BertConfig(**BERT)),
        AutoModelForCausalLM.from_config(CONFIG_MAPPING["roberta"](**BERT)),
        AutoModelForCausalLM.from_config(Gemma3TextConfig(**both_ways)),
        AutoModelForCausalLM.from_config(CONFIG_MAPPING["xlnet"](**XLNET)),
    ]


@pytest.mark.parametrize("model", bidirectional(), ids=lambda model: type(model).__name__)
def test_a_student_that_sees_its_labels_is_refused(model, small_store, tmp_path):
    with pytest.raises(GuardError, match=f"{type(model).__name__} is not causal"):
        tiny_trainer(small_store, tmp_path, model=model, fused=False)


@pytest.mark.parametrize(("kind", "attention"), cases([*RIGHT, *REFUSED]))
def test_causal_students_pass(kind, attention):
    """Of every kind, also those that cannot be packed."""
    check_causal(student(kind, attention))


def test_a_student_that_scales_its_embeddings_in_their_place_passes():
    """Of CTRL, torch refused it: "a leaf Variable that requires grad is being used in an in-place operation"."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "dff": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    check_causal(AutoModelForCausalLM.from_config(CONFIG_MAPPING["ctrl"](**{**sizes, "vocab_size": 64})))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_reason_to_refuse(dtype):
    decoder = AutoModelForCausalLM.from_config(BertConfig(**BERT, is_decoder=True))
    for model in (student("mixtral", "sdpa"), decoder):
        check_causal(model.to(dtype))


def test_the_student_is_left_as_it_was():
    model, state = tiny_student(dropout=0.5), torch.get_rng_state()
    model.train()
    check_causal(model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    tiny_student(dropout=0.5)
    assert torch.equal(state, torch.get_rng_state())


def test_a_student_without_a_gradient_here_is_refused_in_words():
    model = tiny_student()

    def forward(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("FlexAttention does not support backward on CPU.")

    model.model.layers[0].register_forward_hook(forward)
    with pytest.raises(GuardError, match=r"no gradient here: FlexAttention.*attn_implementation='sdpa'"):
        check_causal(model)


def test_what_predicts_no_tokens_is_refused_in_words(small_store, tmp_path):
    config = tiny_student().config
    for model, words in (
        (torch.nn.Linear(2, 2), "a Linear, which has no configuration"),
        (AutoModel.from_config(config), "LlamaModel has no output head"),
        (AutoModelForSequenceClassification.from_config(config), "has no output head"),
        (AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING["t5"](**T5)), "reads its prompt by an encoder"),
    ):
        with pytest.raises(GuardError, match=words):
            check_has_head(model)
        with pytest.raises(GuardError, match=words):
            tiny_trainer(small_store, tmp_path, model=model)
