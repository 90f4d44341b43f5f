"""Model folders of a real model's shape without weights, which vLLM makes up (`load_format = "dummy"`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a Qwen3 model."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """Whether the head is the embedding."""
    budget_sec: int
    """Seconds for an engine's start and its runs: about 80, and the rest by its rate on an H200."""


def _qwen3(
    name: str, hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool, sec: int
) -> Geometry:
    return Geometry(name, hidden, intermediate, layers, heads, 8, 128, 151_936, tied, sec)


GEOMETRIES = (
    _qwen3("Qwen3 8B", 4096, 12_288, 36, 32, tied=False, sec=270),
    _qwen3("Qwen3 0.6B", 1024, 3072, 28, 16, tied=True, sec=210),
)
TINY = Geometry("a tiny model", 64, 64, 1, 2, 1, 32, 640, tied=True, budget_sec=240)
"""For a rehearsal."""


def write_model(folder: Path, geometry: Geometry) -> None:
    """A folder that an engine with dummy weights starts from; random ids are labeled, so no tokenizer."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": geometry.vocab_size - 1,
        "head_dim": geometry.head_dim,
        "hidden_act": "silu",
        "hidden_size": geometry.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": geometry.intermediate_size,
        "max_position_embeddings": 40_960,
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "num_key_value_heads": geometry.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1e6,
        "tie_word_embeddings": geometry.tied,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": geometry.vocab_size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"none": torch.zeros(4)}, folder / "model.safetensors")  # the fingerprint asks for a file
