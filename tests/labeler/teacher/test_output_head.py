"""In which precision the logits are computed: the choice, what vLLM is told, and what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.teacher.output_head import choose_head

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from labeler.teacher.vllm import engine  # noqa: E402

PLAIN = {"dtype": "bfloat16"}
QUANTISED = {"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
QUANTISED_WITHIN = {"text_config": {"compression_config": {"format": "int4"}}}


def teacher(**settings: Any) -> TeacherConfig:
    return TeacherConfig(model="m", **settings)


@pytest.mark.parametrize(
    ("config", "model_config", "on_gpu", "head"),
    [
        (teacher(), PLAIN, True, "float32_sums"),
        (teacher(dtype="float16"), {}, True, "float32_sums"),
        (teacher(), PLAIN, False, "model"),
        (teacher(dtype="float32"), PLAIN, True, "model"),
        (teacher(), QUANTISED, True, "model"),
        (teacher(), QUANTISED_WITHIN, True, "model"),
        (teacher(quantization="fp8"), PLAIN, True, "model"),
        (teacher(head_dtype="float32_sums"), QUANTISED, True, "float32_sums"),
        (teacher(head_dtype="float32"), PLAIN, True, "float32"),
        (teacher(head_dtype="float32"), PLAIN, False, "float32"),
        (teacher(head_dtype="model"), PLAIN, True, "model"),
    ],
)
def test_the_choice(config: TeacherConfig, model_config: dict[str, Any], on_gpu: bool, head: str) -> None:
    choice = choose_head(config, model_config, on_gpu=on_gpu)
    assert choice.head == head
    if config.head_dtype != "auto":
        assert f'teacher.head_dtype = "{config.head_dtype}"' in choice.in_words


def test_sums_need_a_gpu() -> None:
    with pytest.raises(ValueError, match=r'float32_sums" needs a GPU .* set it to "float32"'):
        choose_head(teacher(head_dtype="float32_sums"), PLAIN, on_gpu=False)


def platform(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        is_cpu=lambda: kind == "cpu", is_cuda=lambda: kind == "cuda", is_rocm=lambda: kind == "rocm"
    )


@pytest.mark.parametrize(
    ("kind", "head_dtype", "told", "in_manifest"),
    [
        ("cuda", "auto", "float32", "bfloat16_float32_sums"),
        ("rocm", "auto", "float32", "bfloat16_float32_sums"),
        ("cpu", "auto", None, "bfloat16"),
        ("cuda", "model", "model", "bfloat16"),
        ("cuda", "float32", "float32", "float32"),
        ("cpu", "float32", "float32", "float32"),
    ],
)
def test_what_the_engine_is_told_and_the_manifest_says(
    kind: str,
    head_dtype: Any,
    told: str | None,
    in_manifest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform", platform(kind))
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    config = teacher(head_dtype=head_dtype, engine_args={"hf_overrides": {"rope_theta": 1e6}})
    choice = engine.head_choice(config, tmp_path)
    arguments = engine.engine_args(
        config, LabelsConfig(), SamplingConfig(), tmp_path, 71, in_engine=True, head=choice.head
    )
    expected = {"rope_theta": 1e6} | ({"head_dtype": told} if told else {})
    assert arguments["hf_overrides"] == expected
    in_engine = "float32" if told == "float32" else "bfloat16"
    assert choice.dtype_of_logits("bfloat16", in_engine) == in_manifest


def test_the_manifest_names_what_the_engine_did_and_not_what_it_was_asked() -> None:
    """A platform without float32 falls back; weights that are float32 have nothing to keep."""
    choice = choose_head(teacher(), PLAIN, on_gpu=True)
    assert choice.dtype_of_logits("bfloat16", "bfloat16") == "bfloat16"
    assert choice.dtype_of_logits("float32", "float32") == "float32"
    assert choice.dtype_of_logits("float16", "float32") == "float16_float32_sums"


def head_product(processor_dtype: Any, hidden_NH: Any, weight_VH: Any) -> Any:
    """vLLM's own product of a head, as its `LogitsProcessor` makes it."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    processor = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(processor)
    processor.head_dtype = processor_dtype
    head: Any = SimpleNamespace(weight=weight_VH, quant_method=UnquantizedEmbeddingMethod())
    return processor._apply_head(head, hidden_NH, None)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
                ),
            ],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_head_keeps_its_sums(device: str, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_NH = torch.randn(33, 256, generator=generator).to(dtype).to(device)
    weight_VH = (torch.randn(1000, 256, generator=generator) * 2).to(dtype).to(device)
    exact_NV = hidden_NH.double() @ weight_VH.double().T
    found_NV = head_product(torch.float32, hidden_NH, weight_VH)
    assert found_NV.dtype == torch.float32
    error = (found_NV - exact_NV).abs().max() / exact_NV.abs().max()
    rounded = (exact_NV.to(dtype).double() - exact_NV).abs().max() / exact_NV.abs().max()
    assert error < (2e-6 if device == "cpu" else 2e-5)  # tensor cores cut off where they add
    assert rounded > 1e-4, "rounding the sums must be visible for this test to test anything"
