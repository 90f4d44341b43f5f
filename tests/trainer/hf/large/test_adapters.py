"""What is trained beside adapters, tokens that were added, and adapters on a student held in 4 bits."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests.trainer.students import VOCAB_SIZE, tiny_student, tiny_trainer
from trainer.errors import GuardError, UnsupportedHeadError

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft")
LEARNING: dict[str, Any] = {"max_steps": 15, "optim": "adamw_torch", "learning_rate": 0.05}
NEW_IDS = 6


def adapted(model, **settings):
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    )


def llama(*, hidden_size=16, tied=False):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, hidden_size=hidden_size, tie_word_embeddings=tied, **sizes)
    )


def kl_before_and_after(trainer):
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    return before, trainer.evaluate()["eval_kl"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 5]}], ids=str
)
def test_rows_of_the_input_embedding_are_trained_beside_adapters(small_store, tmp_path, settings, fused):
    model = adapted(tiny_student(), **settings)
    trained = [name for name, value in model.named_parameters() if value.requires_grad and "embed" in name]
    start = {name: model.get_parameter(name).detach().clone() for name in trained}
    before, after = kl_before_and_after(
        tiny_trainer(small_store, tmp_path, model=model, fused=fused, **LEARNING)
    )
    assert after < before
    assert trained
    for name in trained:
        assert not torch.equal(model.get_parameter(name), start[name])


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 5]}], ids=str
)
def test_a_tied_head_that_is_trained_is_refused_fused_and_learns_unfused(small_store, tmp_path, settings):
    with pytest.raises(UnsupportedHeadError, match=r"loss\.fused=false"):
        tiny_trainer(small_store, tmp_path, model=adapted(llama(tied=True), **settings))
    trainer = tiny_trainer(
        small_store, tmp_path, model=adapted(llama(tied=True), **settings), fused=False, **LEARNING
    )
    before, after = kl_before_and_after(trainer)
    assert after < before


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_a_student_with_added_tokens_learns_on_the_teachers_ids(small_store, tmp_path, lora, fused):
    """Rows that only the student has are padding to the loss; the refusal names the settings."""

    def student():
        model: Any = tiny_student()
        model.resize_token_embeddings(VOCAB_SIZE + NEW_IDS)
        return adapted(model, trainable_token_indices=[VOCAB_SIZE]) if lora else model

    with pytest.raises(GuardError, match=r"the student has 70 logits.*vocab_size"):
        tiny_trainer(small_store, tmp_path, model=student(), fused=fused)
    trainer = tiny_trainer(
        small_store,
        tmp_path,
        model=student(),
        fused=fused,
        vocab_size=VOCAB_SIZE,
        foreign_ids="tail",
        **LEARNING,
    )
    before, after = kl_before_and_after(trainer)
    assert after < 0.9 * before or lora
    assert after < before


@pytest.mark.parametrize("fused", [True, False])
def test_a_student_held_in_4_bits_learns_by_adapters(small_store, tmp_path, fused):
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=64).save_pretrained(tmp_path / "student")  # as wide as a block of its scales
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "student", quantization_config=settings, dtype=torch.float32
    )
    held = model.model.layers[0].mlp.down_proj.weight
    assert held.dtype == torch.uint8
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = tiny_trainer(
        small_store, tmp_path, model=model, fused=fused, trainer={"peft_config": lora}, **LEARNING
    )
    before, after = kl_before_and_after(trainer)
    assert after < before
    student: Any = trainer.model
    trained = [name for name, value in student.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def in_4_bits(folder):
    """A student of one layer with adapters that pass gradients on from the start."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        dtype=torch.float32,
    )
    torch.manual_seed(0)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )


def test_an_evaluation_takes_no_gradient_from_a_student_held_in_4_bits(small_store, tmp_path):
    """On CPUs with AVX512-BF16, bitsandbytes evaluates by a kernel that gradients do not go through."""
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=64).save_pretrained(tmp_path / "student")
    ids = torch.arange(20)[None]

    def gradients(model):
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    expected = gradients(in_4_bits(tmp_path / "student"))
    model = in_4_bits(tmp_path / "student")
    tiny_trainer(small_store, tmp_path, model=model).evaluate()
    for name, gradient in gradients(model).items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name])


def test_a_student_held_in_4_bits_that_was_evaluated_before_is_refused(small_store, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("bitsandbytes keeps one layout on this CPU")
    llama(hidden_size=64).save_pretrained(tmp_path / "student")
    model = in_4_bits(tmp_path / "student")
    with torch.no_grad():
        model.eval()(torch.arange(20)[None])
    with pytest.raises(GuardError, match=r"q_proj\S* is held in 4 bits and was evaluated on this CPU"):
        tiny_trainer(small_store, tmp_path, model=model)
