"""How many weights a model has, in how many bytes, and what a token costs its cache: by config.json alone.

Everything is rather too small than too large, since machines are refused by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLOAT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BITS = {
    "int4": 4, "nf4": 4, "fp4": 4, "mxfp4": 4, "nvfp4": 4, "w4a16": 4, "w4a8": 4, "w4a4": 4, "4bit": 4,
    "mxfp6": 6, "fp8": 8, "mxfp8": 8, "int8": 8, "w8a8": 8, "w8a16": 8, "8bit": 8,
    "awq": 4, "gptq": 4, "bitsandbytes": 4,
}  # fmt: skip
"""By the words of a quantisation's name, or of a model's; the first that is found counts."""
SCALES = 1.05
"""A quantised weight's share of the scales."""
NOT_GATED = ("bloom", "falcon", "gpt_bigcode", "gpt_neox", "mpt", "opt", "phi", "starcoder2")
"""Models whose layers have two matrices in the MLP instead of three."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
FIRST_SPARSE = ("first_k_dense_replace", "moe_layer_start_index", "expert_layer_offset")
SPARSE_STEP = (
    "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "moe_layer_interval",
    "expert_layer_period",
)  # fmt: skip
OTHER_LAYERS = ("mamba", "ssm_", "linear_", "hybrid_", "attn_layer_", "conv_", "lru_", "rwkv", "block_")
"""Beginnings of settings of models whose layers are not all attention and MLP of one size."""
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Weights of one model."""

    layers: float
    """Number of weights that a quantisation takes."""
    outer: float
    """Number of weights of embedding and head, which stay as they are."""
    float_bytes: float
    """Bytes of a weight that is not quantised."""
    layer_bytes: float
    """Bytes of a weight of the layers."""
    is_sure: bool
    """False where the layers are of a kind that is not counted here, or a quantisation is not understood."""

    @property
    def num_bytes(self) -> float:
        return self.layers * self.layer_bytes + self.outer * self.float_bytes


def is_readable(config: Mapping[str, Any]) -> bool:
    """Whether the sizes of a text model stand in it."""
    return all(_whole(config, name) for name in NEEDED)


def model_weights(config: Mapping[str, Any], dtype: str, quantization: str | None) -> ModelWeights:
    """Of a readable config.json; `dtype` "auto" is the model's own."""
    float_bytes = FLOAT_BYTES[own_dtype(config) if dtype == "auto" else dtype]
    bits = quantized_bits(config.get("quantization_config") or {}, quantization, "")
    copies = 1 if config.get("tie_word_embeddings") else 2
    return ModelWeights(
        layers=_layer_weights(config),
        outer=float(copies * config["vocab_size"] * config["hidden_size"]),
        float_bytes=float_bytes,
        layer_bytes=float_bytes if bits is None else bits / 8 * SCALES,
        is_sure=not any(key.startswith(OTHER_LAYERS) for key in config)
        and (bits is not None or not (quantization or config.get("quantization_config"))),
    )


def quantized_bits(own: Mapping[str, Any], quantization: str | None, name: str) -> float | None:
    """Bits of a weight by the model's quantization_config, the engine's name for it or the model's name; of
    several precisions the smallest. None without a quantisation, and for one that is not understood."""
    groups = own.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    parts = [part for group in groups if isinstance(group, Mapping) for part in (group.get("weights"),)]
    given = [own.get(key) for key in ("bits", "w_bit", "num_bits", "nbits")]
    given += [part.get("num_bits") for part in parts if isinstance(part, Mapping)]
    bits = [one for one in given if isinstance(one, int | float) and not isinstance(one, bool) and one > 0]
    if bits:
        return float(min(bits))
    if own.get("load_in_4bit") or own.get("load_in_8bit"):
        return 4.0 if own.get("load_in_4bit") else 8.0
    told = (own.get(key) or "" for key in ("quant_algo", "quant_method", "format"))
    words = re.findall(r"[a-z0-9]+", " ".join(map(str, (quantization or "", *told, name))).lower())
    return next((float(bits) for word, bits in QUANTIZED_BITS.items() if word in words), None)


def cache_bytes(config: Mapping[str, Any], longest: int, value_bytes: float) -> float:
    """Keys and values of one sequence of `longest` tokens; layers with a window keep no more than that."""
    heads, num_layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = _whole(config, "head_dim") or config["hidden_size"] // heads
    of_token = 2 * (_whole(config, "num_key_value_heads") or heads) * head_dim
    of_token = _whole(config, "kv_lora_rank") or of_token  # one compressed vector for keys and values
    window = _whole(config, "sliding_window") if config.get("use_sliding_window") is not False else None
    window = window or _whole(config, "attention_chunk_size") or longest
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        kinds = ["sliding_attention"] * num_layers
    num_full, num_without = kinds.count("full_attention"), kinds.count("linear_attention")
    num_cut = len(kinds) - num_full - num_without
    return of_token * value_bytes * (num_full * longest + num_cut * min(window, longest))


def own_dtype(config: Mapping[str, Any]) -> str:
    """The model's own, which the labeler has vLLM take."""
    found = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return found if found in FLOAT_BYTES else "bfloat16"


def _layer_weights(config: Mapping[str, Any]) -> float:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    num_layers = config["num_hidden_layers"]
    head_dim = _whole(config, "head_dim") or hidden // heads
    kv_heads = _whole(config, "num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    matrices = 2 if config.get("model_type") in NOT_GATED else 3
    experts = next((found for name in EXPERTS if (found := _whole(config, name))), 0)
    num_sparse = _num_sparse(config) if experts else 0
    inter = _intermediate(config)
    dense = _whole(config, "intermediate_size_mlp") or inter
    sparse = experts * (_whole(config, "moe_intermediate_size") or inter)
    columns = num_sparse * sparse + (num_layers - num_sparse) * dense
    return float(num_layers * attention + matrices * hidden * columns)


def _intermediate(config: Mapping[str, Any]) -> float:
    """The MLP's width; the mean where each layer has its own."""
    each = config.get("intermediate_size")
    if isinstance(each, list) and each and all(isinstance(one, int) for one in each):
        return sum(each) / len(each)
    return _whole(config, "intermediate_size") or 4 * config["hidden_size"]


def _num_sparse(config: Mapping[str, Any]) -> int:
    """Layers with experts: named one by one, or each so many-th after the first ones."""
    num_layers = config["num_hidden_layers"]
    for name, is_sparse in (("mlp_layer_types", "sparse"), ("moe_layer_freq", 1)):
        if isinstance(config.get(name), list):
            return config[name].count(is_sparse)
    if isinstance(config.get("moe_layers"), list):
        return len(config["moe_layers"])
    first = next((found for name in FIRST_SPARSE if (found := _whole(config, name))), 0)
    step = next((found for name in SPARSE_STEP if (found := _whole(config, name))), 1)
    dense = config.get("mlp_only_layers") or ()
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(first, num_layers))


def _whole(config: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0, or None."""
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
