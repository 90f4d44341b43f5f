"""What a teacher needs of each GPU's memory, from its config.json alone, before any machine is started.

An estimate on the low side: weights, the labels' logits, the cache of one longest sequence. What is refused
by it cannot load; what passes may still be slow for want of cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.config.loading import JobConfig
from logitstore.common.config_file import ConfigError
from logitstore.models.hub import check_model_name

GB = 1e9
DEFAULT_UTILIZATION = 0.9
"""Share of a GPU's memory that vLLM takes unless `gpu_memory_utilization` says otherwise."""
DEFAULT_STEP_TOKENS = 2048
"""Tokens of an engine's step, of which a float32 copy of the logits is made for the labels."""
FLOAT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTIZED_BITS = {
    "awq": 4, "gptq": 4, "int4": 4, "nf4": 4, "bitsandbytes": 4, "mxfp4": 4, "nvfp4": 4, "w4a16": 4,
    "fp8": 8, "int8": 8, "w8a8": 8, "w8a16": 8,
}  # fmt: skip
"""By the words of a quantisation's name, or of a model's."""
SCALES = 1.05
"""A quantised weight's share of the scales."""
NOT_GATED = ("bloom", "falcon", "gpt_bigcode", "gpt_neox", "mpt", "opt", "phi", "starcoder2")
"""Models whose layers have two matrices in the MLP instead of three."""
CONFIG_SOURCE = "by its config.json"
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes on each GPU of a replica."""

    weight_bytes: float
    """Weights of all ranks together."""
    bytes_per_gpu: float
    utilization: float
    """Share of the GPU that may be used."""
    source: str
    """Where the number of weights is from, for people."""
    is_sure: bool
    """False where the number stands in the model's name alone, which says nothing of its precision."""

    @property
    def gpu_bytes(self) -> float:
        """Memory that a GPU must have."""
        return self.bytes_per_gpu / self.utilization

    def __str__(self) -> str:
        return (
            f"the teacher's weights are about {self.weight_bytes / GB:,.1f} GB ({self.source}), and each GPU "
            f"of a replica needs about {self.gpu_bytes / GB:,.1f} GB"
        )


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A teacher's weights as they lie on a disk, in its own precision."""

    num_bytes: float
    source: str
    """Where the number of weights is from, for people."""
    is_sure: bool
    """False where the number stands in the model's name alone."""

    def __str__(self) -> str:
        return f"{self.num_bytes / GB:,.1f} GB ({self.source})"


def stored_weights(job: JobConfig) -> StoredWeights | None:
    """Weights of a teacher that machines fetch; None for a folder, and where nothing tells their size."""
    teacher = job.teacher
    if teacher.engine != "vllm" or Path(teacher.model).is_dir():
        return None
    config = _config_of(teacher.model, teacher.revision)
    if config is not None:
        inner, outer = _num_weights(config)
        num_bytes = inner * _bytes_per_weight(config, "auto", None, "") + outer * FLOAT_BYTES[_dtype(config)]
        return StoredWeights(num_bytes, CONFIG_SOURCE, is_sure=True)
    named = _size_in_name(teacher.model)
    if named is None:
        return None
    num_weights, source = named
    name = teacher.model.rpartition("/")[2]
    return StoredWeights(num_weights * _bytes_per_weight({}, "auto", None, name), source, is_sure=False)


def memory_need(job: JobConfig) -> MemoryNeed | None:
    """None without GPUs, for the stand-in teacher, and where nothing says how large the model is."""
    teacher = job.teacher
    if not job.workers.gpus or teacher.engine == "fake":
        return None
    arguments, ranks = teacher.engine_args, teacher.num_ranks
    utilization = float(arguments.get("gpu_memory_utilization", DEFAULT_UTILIZATION))
    config = _config_of(teacher.model, teacher.revision)
    if config is None:
        named = _size_in_name(teacher.model)
        if named is None:
            return None
        num_weights, source = named
        name = teacher.model.rpartition("/")[2]
        weights = num_weights * _bytes_per_weight({}, teacher.dtype, teacher.quantization, name)
        return MemoryNeed(weights, weights / ranks, utilization, source, is_sure=False)
    inner, outer = _num_weights(config)
    float_bytes = FLOAT_BYTES[teacher.dtype if teacher.dtype != "auto" else _dtype(config)]
    weights = inner * _bytes_per_weight(config, teacher.dtype, teacher.quantization, "")
    weights += outer * float_bytes  # embedding and head are not quantised
    if teacher.head_dtype == "float32":  # vLLM then keeps the head's weight in float32
        weights += config["vocab_size"] * config["hidden_size"] * (4.0 - float_bytes)
    logits = int(arguments.get("max_num_batched_tokens", DEFAULT_STEP_TOKENS)) * config["vocab_size"] * 4.0
    longest = teacher.max_model_len or int(config.get("max_position_embeddings", 4096))
    cache = longest * _cache_bytes_per_token(config, float_bytes)
    each = (weights + cache) / ranks + logits
    return MemoryNeed(weights, each, utilization, CONFIG_SOURCE, is_sure=True)


def _size_in_name(model: str) -> tuple[float, str] | None:
    """How many weights a model's name says it has, and the words for that."""
    named = _SIZE_IN_NAME.search(model.rpartition("/")[2])
    if named is None:
        return None
    return float(named[1]) * 1e9, f"{named[0]} in its name, as its config.json is not here"


def _config_of(model: str, revision: str | None) -> dict[str, Any] | None:
    """The text model's config.json of a folder, or of Hugging Face's cache or hub; None if none has it."""
    path = Path(model) / "config.json"
    if not path.is_file():
        try:
            from huggingface_hub import hf_hub_download

            check_model_name(model, revision=revision, setting="teacher.model")
            path = Path(hf_hub_download(model, "config.json", revision=revision))
        except (ModuleNotFoundError, ConfigError, OSError):
            return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    quantized = config.get("quantization_config")
    config = config.get("text_config") or config
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if not all(isinstance(config.get(name), int) for name in needed):
        return None
    return {**config, "quantization_config": config.get("quantization_config") or quantized}


def _num_weights(config: Mapping[str, Any]) -> tuple[float, float]:
    """Weights of the layers, and of embedding and head."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    inter = config.get("intermediate_size") or 4 * hidden
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    if experts:
        inter = experts * (config.get("moe_intermediate_size") or inter)
    matrices = 2 if config.get("model_type") in NOT_GATED else 3
    layers = config["num_hidden_layers"] * (attention + matrices * hidden * inter)
    copies = 1 if config.get("tie_word_embeddings") else 2
    return float(layers), float(copies * config["vocab_size"] * hidden)


def _cache_bytes_per_token(config: Mapping[str, Any], float_bytes: float) -> float:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if config.get("kv_lora_rank"):  # one compressed vector for keys and values
        return config["num_hidden_layers"] * config["kv_lora_rank"] * float_bytes
    return (
        2
        * config["num_hidden_layers"]
        * (config.get("num_key_value_heads") or heads)
        * head_dim
        * float_bytes
    )


def _dtype(config: Mapping[str, Any]) -> str:
    """The model's own, which the labeler has vLLM take."""
    found = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return found if found in FLOAT_BYTES else "bfloat16"


def _bytes_per_weight(config: Mapping[str, Any], dtype: str, quantization: str | None, name: str) -> float:
    own = config.get("quantization_config") or {}
    if isinstance(own.get("bits"), int):
        return own["bits"] / 8 * SCALES
    method = f"{quantization or own.get('quant_method') or ''} {name}"
    words = set(re.findall(r"[a-z]+[0-9]*", method.lower()))
    for word, bits in QUANTIZED_BITS.items():
        if word in words:
            return bits / 8 * SCALES
    return FLOAT_BYTES[dtype if dtype != "auto" else _dtype(config)]
