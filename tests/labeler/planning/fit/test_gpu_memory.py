"""What a teacher needs of a GPU: weights, cache and logits as worked out by hand, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import JobConfig, load_job
from labeler.planning.fit.gpu_memory import GB, memory_need

LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "dtype": "bfloat16",
}  # fmt: skip
"""Llama 3.1 8B: 8.03e9 weights."""


def a_job(model: Path | str, *overrides: str, ranks: int = 1) -> JobConfig:
    base = [f"teacher.model='{model}'", f"teacher.tensor_parallel_size={ranks}", f"workers.gpus={ranks}",
            "input.uri=in.jsonl", "input.kind=prompt", "labels.mode=generate", "output.uri=out"]  # fmt: skip
    return load_job(None, [*base, *overrides], {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path, LLAMA_8B)
    return tmp_path


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_cache_and_logits_are_added_up(model: Path) -> None:
    need = memory_need(a_job(model, "teacher.max_model_len=8192"))
    assert need is not None
    assert need.is_sure
    assert need.weight_bytes == pytest.approx(2 * 8.03e9, rel=0.01)
    cache = 8192 * 2 * 32 * 8 * 128 * 2
    logits = 2048 * 128256 * 4
    assert need.bytes_per_gpu == pytest.approx(need.weight_bytes + cache + logits, rel=1e-6)
    assert need.gpu_bytes == pytest.approx(need.bytes_per_gpu / 0.92)
    halved = memory_need(a_job(model, "teacher.max_model_len=8192", ranks=2))
    assert halved is not None
    assert halved.bytes_per_gpu == pytest.approx((need.weight_bytes + cache) / 2 + logits, rel=1e-6)


def test_precision_head_and_quantisation_count(model: Path) -> None:
    plain = memory_need(a_job(model))
    single = memory_need(a_job(model, "teacher.dtype=float32"))
    head = memory_need(a_job(model, "teacher.head_dtype=float32"))
    assert plain is not None
    assert single is not None
    assert head is not None
    assert single.weight_bytes == pytest.approx(2 * plain.weight_bytes)
    assert head.weight_bytes - plain.weight_bytes == pytest.approx(128256 * 4096 * 2)
    write(model, LLAMA_8B | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    small = memory_need(a_job(model))
    assert small is not None
    assert 5e9 < small.weight_bytes < 6.5e9


def test_a_quantisation_in_a_file_of_its_own_counts(model: Path) -> None:
    """NVIDIA's ModelOpt writes it beside config.json."""
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    need = memory_need(a_job(model))
    assert need is not None
    assert need.is_sure
    assert 5e9 < need.weight_bytes < 6.5e9


def test_replicas_that_share_a_gpu_have_their_parts_of_its_memory(model: Path) -> None:
    whole, shared = a_job(model), a_job(model, "workers.gpus=0.25", "workers.replicas=4")
    assert (whole.gpu_memory_utilization, shared.gpu_memory_utilization) == (0.92, 0.23)
    need = memory_need(shared)
    assert need is not None
    assert need.gpu_bytes == pytest.approx(need.bytes_per_gpu / 0.23)
    own = a_job(model, "workers.gpus=0.25", "teacher.engine_args={gpu_memory_utilization = 0.2}")
    assert own.gpu_memory_utilization == 0.2


def test_a_smaller_cache_and_weights_beside_the_gpu_count(model: Path) -> None:
    plain = memory_need(a_job(model, "teacher.max_model_len=8192"))
    arguments = 'teacher.engine_args={kv_cache_dtype = "fp8", cpu_offload_gb = 4}'
    less = memory_need(a_job(model, "teacher.max_model_len=8192", arguments))
    assert plain is not None
    assert less is not None
    half_cache = 8192 * 2 * 32 * 8 * 128
    assert plain.bytes_per_gpu - less.bytes_per_gpu == pytest.approx(half_cache + 4 * 2**30)


def test_experts_count_all(model: Path) -> None:
    write(model, LLAMA_8B | {"num_local_experts": 8, "vocab_size": 32000})
    need = memory_need(a_job(model))
    assert need is not None
    assert need.weight_bytes == pytest.approx(2 * 46.7e9, rel=0.01), "Mixtral 8x7B has 46.7e9 weights"


@pytest.mark.parametrize(
    ("name", "weight_gb"),
    [
        ("org/Qwen3-32B", 64.0), ("org/Llama-70B-FP8", 73.5), ("org/x-13B-AWQ", 6.8), ("org/m-0.5b", 1.0),
        ("org/Mixtral-8x7B", None), ("org/phi-4", None), ("org/w4b2", None),
    ],
)  # fmt: skip
def test_a_name_gives_no_more_than_a_guess(
    name: str, weight_gb: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeler.planning.fit.gpu_memory._config_of", lambda model, revision: None)
    need = memory_need(a_job(name))
    if weight_gb is None:
        assert need is None
        return
    assert need is not None
    assert not need.is_sure
    assert need.weight_bytes / GB == pytest.approx(weight_gb, rel=0.01)
    assert "in its name" in str(need)


def test_without_gpus_nothing_is_said(model: Path) -> None:
    assert memory_need(a_job(model, "workers.gpus=0")) is None
    assert memory_need(a_job(model, "teacher.engine=fake")) is None
