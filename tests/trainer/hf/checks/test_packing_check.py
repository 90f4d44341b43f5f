"""Packing against students of many architectures: what passes is right, what is wrong is refused by name."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.trainer.stores import label_spec, labeled_sequence
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.samples import Sample
from trainer.errors import PackingError
from trainer.hf.checks.packing_check import check_packed_attention, choose_packed_attention
from trainer.hf.heads import batch_loss
from trainer.loss.loss_settings import LossSettings

SPEC = label_spec()
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
WINDOW = {"sliding_window": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RIGHT: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen2 sliding": {**COMMON, **WINDOW, "use_sliding_window": True, "max_window_layers": 0},
    "qwen3": COMMON,
    "qwen3_moe": {**COMMON, **MOE},
    "mistral": {**COMMON, **WINDOW},
    "mixtral": {**COMMON, "num_local_experts": 2},
    "gemma": COMMON,
    "gemma2": {**COMMON, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**COMMON, **WINDOW},
    "phi3": {**COMMON, **WINDOW},
    "phi": COMMON,
    "olmo2": COMMON,
    "olmo3": {**COMMON, **WINDOW},
    "granite": COMMON,
    "cohere": COMMON,
    "smollm3": COMMON,
    "starcoder2": {**COMMON, **WINDOW},
    "stablelm": COMMON,
    "glm4": {**COMMON, "partial_rotary_factor": 0.5},
    "ernie4_5": COMMON,
    "gpt2": GPT,
    "gpt_neox": {
        key: value for key, value in COMMON.items() if key not in ("num_key_value_heads", "head_dim")
    },
    "persimmon": COMMON,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    # Not by positions: they take a mask.
    "opt": {**COMMON, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "biogpt": COMMON,
    "falcon": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mpt": {"vocab_size": 64, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 256},
}
MASKED = ("opt", "biogpt", "falcon", "mpt")
REFUSED: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "falcon_h1": {**COMMON, "mamba_n_heads": 4, "mamba_d_ssm": 32, "mamba_d_state": 8, "mamba_d_head": 8},
    "jamba": {**COMMON, "mamba_d_state": 4},
    "lfm2": {**COMMON, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {**COMMON, "num_local_experts": 2, "intermediate_size_mlp": 16, "attention_chunk_size": 8},
}
EAGER_ONLY = ("gptj", "gpt_neo", "mpt", "bloom", "mamba")


def cases(kinds: Iterable[str]) -> list[tuple[str, str]]:
    return [
        (kind, attention)
        for kind in kinds
        for attention in ("sdpa", "eager")
        if attention == "eager" or kind not in EAGER_ONLY
    ]


def student(kind: str, attention: str) -> Any:
    name = kind.partition(" ")[0]
    settings = RIGHT.get(kind) or REFUSED[kind]
    torch.manual_seed(0)
    given = {} if name == "mamba" else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings), **given)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)  # so that attention matters
    return model


def samples() -> list[Sample]:
    rng = np.random.default_rng(4)
    return [
        Sample(labeled_sequence(rng, f"r{index}", SPEC, length, 3), SPEC)
        for index, length in enumerate((20, 13, 31, 9, 17))
    ]


def loss(model: Any, **settings: Any) -> float:
    model.eval()
    with torch.no_grad():
        batch = DistillationCollator(CollateSettings(**settings))(samples())
        return batch_loss(model, batch, LossSettings()).loss.item()


@pytest.mark.parametrize(("kind", "attention"), cases(RIGHT))
def test_what_is_chosen_gives_the_loss_of_the_sequences_apart(kind, attention):
    model = student(kind, attention)
    way = choose_packed_attention(model, pack_length=48)
    by_mask = "block_diagonal" if attention == "sdpa" else "block_diagonal_additive"
    assert way == (by_mask if kind in MASKED else "position_ids")
    assert loss(model, pack_length=48, packed_attention=way) == pytest.approx(loss(model), rel=2e-5)


@pytest.mark.parametrize(("kind", "attention"), cases(REFUSED))
def test_students_that_cannot_be_packed_are_refused(kind, attention):
    with pytest.raises(PackingError, match="Set pack_length to None"):
        choose_packed_attention(student(kind, attention), pack_length=48)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_the_mask_of_another_attention_is_refused_with_what_is_right(kind):
    model = student(kind, "eager")
    wrong = loss(model, pack_length=48, packed_attention="block_diagonal")
    assert wrong != pytest.approx(loss(model), rel=1e-4), "eager attention adds a mask that SDPA obeys"
    with pytest.raises(PackingError, match=r"must not see.*Set packed_attention='position_ids'"):
        check_packed_attention(model, "block_diagonal", pack_length=48)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "phi3", "qwen2 sliding"])
def test_a_mask_that_undoes_a_sliding_window_is_refused(kind):
    model = student(kind, "sdpa")
    wrong = loss(model, pack_length=48, packed_attention="block_diagonal")
    assert wrong != pytest.approx(loss(model), rel=1e-5)
    with pytest.raises(PackingError, match="reaches 8 tokens back"):
        check_packed_attention(model, "block_diagonal", pack_length=48)


def test_rows_laid_end_to_end_are_right_too():
    model = student("llama", "sdpa")
    one_row = loss(model, pack_length=48, packed_attention="position_ids_one_row")
    assert one_row == pytest.approx(loss(model), rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_leaves_the_student_and_the_random_state_as_they_were(dtype):
    model = student("qwen2", "sdpa").to(dtype)
    model.train()
    before, state = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    assert choose_packed_attention(model, pack_length=48) == "position_ids"
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(PackingError, match="must not see"):
        check_packed_attention(student("llama", "eager").to(dtype), "block_diagonal", pack_length=48)


def test_the_collator_does_not_guess():
    with pytest.raises(ValueError, match="choose_packed_attention"):
        DistillationCollator(CollateSettings(pack_length=48))(samples())
