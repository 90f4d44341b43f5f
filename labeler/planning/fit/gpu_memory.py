"""What a teacher needs of each GPU's memory, from its config.json alone, before any machine is started.

An estimate on the low side: weights, the labels' logits, the cache of one longest sequence. What is refused
by it cannot load, and where the model is not understood nothing is refused; what passes may still be slow for
want of cache.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.config.loading import JobConfig
from labeler.planning.fit.model_weights import (
    FLOAT_BYTES,
    SCALES,
    cache_bytes,
    is_readable,
    model_weights,
    quantized_bits,
)
from logitstore.common.config_file import ConfigError
from logitstore.models.hub import check_model_name

GB = 1e9
DEFAULT_CONTEXT = 4096
DEFAULT_STEP_TOKENS = 2048
"""Tokens of an engine's step, of which a float32 copy of the logits is made for the labels."""
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
    """False where the number stands in the model's name alone, which says nothing of its precision, or
    config.json tells of layers or a quantisation that are not understood here."""

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
    """As of a `MemoryNeed`."""

    def __str__(self) -> str:
        return f"{self.num_bytes / GB:,.1f} GB ({self.source})"


def stored_weights(job: JobConfig) -> StoredWeights | None:
    """Weights of a teacher that machines fetch; None for a folder, and where nothing tells their size."""
    teacher = job.teacher
    if teacher.engine != "vllm" or Path(teacher.model).is_dir():
        return None
    config = _config_of(teacher.model, teacher.revision)
    if config is not None:
        weights = model_weights(config, "auto", None)
        return StoredWeights(weights.num_bytes, CONFIG_SOURCE, weights.is_sure)
    return _by_name(teacher.model, "auto", None)


def memory_need(job: JobConfig) -> MemoryNeed | None:
    """None without GPUs, for the stand-in teacher, and where nothing says how large the model is."""
    teacher = job.teacher
    if not job.workers.gpus or teacher.engine == "fake":
        return None
    arguments, ranks = teacher.engine_args, teacher.num_ranks
    utilization = job.gpu_memory_utilization
    config = _config_of(teacher.model, teacher.revision)
    if config is None:
        named = _by_name(teacher.model, teacher.dtype, teacher.quantization)
        if named is None:
            return None
        return MemoryNeed(named.num_bytes, named.num_bytes / ranks, utilization, named.source, is_sure=False)
    found = model_weights(config, teacher.dtype, teacher.quantization)
    weights = found.num_bytes
    if teacher.head_dtype == "float32":  # vLLM then keeps the head's weight in float32
        weights += config["vocab_size"] * config["hidden_size"] * (4.0 - found.float_bytes)
    logits = int(arguments.get("max_num_batched_tokens", DEFAULT_STEP_TOKENS)) * config["vocab_size"] * 4.0
    longest = teacher.max_model_len or int(config.get("max_position_embeddings") or DEFAULT_CONTEXT)
    is_small = "8" in str(arguments.get("kv_cache_dtype", ""))  # fp8 and its kinds, int8
    cache = cache_bytes(config, longest, 1.0 if is_small else found.float_bytes)
    on_gpus = max(0.0, weights / ranks - float(arguments.get("cpu_offload_gb") or 0) * 2**30)
    return MemoryNeed(weights, on_gpus + cache / ranks + logits, utilization, CONFIG_SOURCE, found.is_sure)


def _by_name(model: str, dtype: str, quantization: str | None) -> StoredWeights | None:
    """A guess by what a model's name says of its size and precision."""
    named = _size_in_name(model)
    if named is None:
        return None
    num_weights, source = named
    bits = quantized_bits({}, quantization, model.rpartition("/")[2])
    each = FLOAT_BYTES["bfloat16" if dtype == "auto" else dtype] if bits is None else bits / 8 * SCALES
    return StoredWeights(num_weights * each, source, is_sure=False)


def _size_in_name(model: str) -> tuple[float, str] | None:
    """How many weights a model's name says it has, and the words for that."""
    named = _SIZE_IN_NAME.search(model.rpartition("/")[2])
    if named is None:
        return None
    return float(named[1]) * 1e9, f"{named[0]} in its name, as its config.json is not here"


def _config_of(model: str, revision: str | None) -> dict[str, Any] | None:
    """The text model's config.json of a folder, or of Hugging Face's cache or hub, with what is said of its
    quantisation, there or in a file of NVIDIA's own; None if none has it."""
    config = _file_of(model, revision, "config.json")
    if config is None:
        return None
    quantized = config.get("quantization_config")
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if not is_readable(config):
        return None
    quantized = config.get("quantization_config") or quantized
    if not quantized:
        quantized = (_file_of(model, revision, "hf_quant_config.json") or {}).get("quantization")
    return {**config, "quantization_config": quantized if isinstance(quantized, dict) else None}


def _file_of(model: str, revision: str | None, name: str) -> dict[str, Any] | None:
    path = Path(model) / name
    if not path.is_file():
        if Path(model).is_dir():
            return None
        try:
            from huggingface_hub import hf_hub_download

            check_model_name(model, revision=revision, setting="teacher.model")
            path = Path(hf_hub_download(model, name, revision=revision))
        except (ModuleNotFoundError, ConfigError, OSError):
            return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
