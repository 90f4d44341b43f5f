"""Weights and caches of models as people have them: their published sizes, and their quantisations' own words."""

from __future__ import annotations

from typing import Any

import pytest

from labeler.planning.fit.model_weights import cache_bytes, is_readable, model_weights, quantized_bits

LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
}  # fmt: skip
MAVERICK = {
    "model_type": "llama4_text", "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "interleave_moe_layer_step": 2, "num_local_experts": 128, "vocab_size": 202048,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "first_k_dense_replace": 3, "moe_layer_freq": 1, "vocab_size": 129280,
    "kv_lora_rank": 512,
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions"),
    [(LLAMA_70B, 70.6), (MAVERICK, 400), (DEEPSEEK_V3, 671), (QWEN3_30B, 30.5)],
    ids=["llama-70b", "llama4-maverick", "deepseek-v3", "qwen3-30b-a3b"],
)
def test_published_sizes_are_found(config: dict[str, Any], billions: float) -> None:
    found = model_weights(config, "auto", None)
    assert found.is_sure
    assert (found.layers + found.outer) / 1e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize(
    ("change", "num_sparse"),
    [
        ({"mlp_only_layers": [0, 1, 2, 3]}, 44),
        ({"decoder_sparse_step": 2}, 24),
        ({"moe_layer_freq": [0] * 3 + [1] * 45}, 45),
        ({"mlp_layer_types": ["dense"] * 8 + ["sparse"] * 40}, 40),
        ({"moe_layers": list(range(1, 48, 2))}, 24),
        ({"moe_layer_start_index": 3, "moe_layer_interval": 1}, 45),
    ],
)
def test_only_layers_with_experts_count_them(change: dict[str, Any], num_sparse: int) -> None:
    all_sparse = model_weights(QWEN3_30B, "auto", None).layers
    dense_instead = 3 * 2048 * (128 * 768 - 6144)
    found = model_weights(QWEN3_30B | change, "auto", None).layers
    assert found == all_sparse - (48 - num_sparse) * dense_instead


@pytest.mark.parametrize(
    ("own", "quantization", "name", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, None, "", 4),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            None,
            "",
            4,
        ),
        ({"config_groups": {"a": {"weights": {"num_bits": 8}}, "b": {"weights": None}}}, None, "", 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None, "", 4),
        ({"quant_algo": "W4A8_AWQ"}, None, "", 4),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, None, "", None),
        ({"quant_method": "fbgemm_fp8"}, None, "", 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "", 8),
        ({"quant_method": "mxfp4"}, None, "", 4),
        ({"quant_method": "exl2", "bits": 3.5}, None, "", 3.5),
        ({"quant_method": "vptq"}, None, "", None),
        ({}, "fp8", "", 8),
        ({}, None, "Llama-70B-w4a16", 4),
        ({}, None, "Qwen-7B-GPTQ-Int8", 8),
        ({}, None, "Qwen3-32B", None),
        ({"bits": True, "config_groups": [1]}, None, "", None),
    ],
)
def test_a_quantisation_is_read_in_its_own_words(
    own: dict[str, Any], quantization: str | None, name: str, bits: float | None
) -> None:
    assert quantized_bits(own, quantization, name) == bits


@pytest.mark.parametrize(
    "more",
    [
        {"quantization_config": {"quant_method": "vptq"}},
        {"mamba_d_state": 16},
        {"linear_num_value_heads": 32},
        {"block_configs": [{}]},
    ],
)
def test_what_is_not_understood_is_no_sure_number(more: dict[str, Any]) -> None:
    assert not model_weights(LLAMA_70B | more, "auto", None).is_sure


def test_widths_by_layer_and_odd_values_are_no_defect() -> None:
    by_layer = LLAMA_70B | {"intermediate_size": [28672] * 80}
    assert model_weights(by_layer, "auto", None) == model_weights(LLAMA_70B, "auto", None)
    assert not is_readable(LLAMA_70B | {"num_attention_heads": [64] * 80})
    assert not is_readable(LLAMA_70B | {"hidden_size": True})
    model_weights(
        LLAMA_70B | {"head_dim": "x", "num_key_value_heads": [8], "num_experts": None}, "auto", None
    )


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    of_token = 2 * 8 * 128 * 2
    longest = 100_000
    assert cache_bytes(LLAMA_70B, longest, 2.0) == 80 * longest * of_token
    kinds = ["full_attention", "sliding_attention"] * 40
    mixed = LLAMA_70B | {"sliding_window": 4096, "layer_types": kinds}
    assert cache_bytes(mixed, longest, 2.0) == 40 * (longest + 4096) * of_token
    unused = LLAMA_70B | {"sliding_window": 4096, "use_sliding_window": False}
    assert cache_bytes(unused, longest, 2.0) == 80 * longest * of_token
    linear = LLAMA_70B | {"layer_types": ["linear_attention"] * 60 + ["full_attention"] * 20}
    assert cache_bytes(linear, longest, 2.0) == 20 * longest * of_token
    assert cache_bytes(DEEPSEEK_V3, longest, 2.0) == 61 * longest * 512 * 2
