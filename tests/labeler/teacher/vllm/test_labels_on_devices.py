"""Labels of a real engine against transformers, on the device that it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.labels import agreement
from labeler.config.loading import TeacherConfig
from labeler.teacher.vllm.teacher import VllmTeacher
from tests.devices import no_gpu
from tests.labeler import engines

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900), engines.needs_model]
TEMPERATURES = (1.0, 2.0, 4.0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def teacher_on(device: str, dtype: Any) -> Iterator[VllmTeacher]:
    """On a GPU an engine as a job has it, in a process of its own: its memory is free again afterwards."""
    if device == "cpu":
        yield engines.score_teacher()
        return
    config = TeacherConfig(
        model=str(engines.MODEL),
        dtype=dtype,
        max_model_len=engines.MAX_MODEL_LEN,
        capture="in_engine",
        engine_args={"gpu_memory_utilization": 0.3, "enforce_eager": True},
    )
    teacher = VllmTeacher(config, engines.SCORE, engines.SAMPLING)
    try:
        yield teacher
    finally:
        teacher.close()


def reference_model(device: str, dtype: str, folder: Path = engines.MODEL) -> Any:
    """transformers' model whose head, of the same weights, gives float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=DTYPES[dtype])
    model = model.to(device).eval()
    head = model.get_output_embeddings()
    head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), head.weight.float())
    return model


@pytest.mark.parametrize(
    ("device", "dtype", "nats", "runner"),
    [
        ("cpu", "float32", 1e-3, "v1"),
        pytest.param("cuda", "float32", 1e-2, "v2", marks=[pytest.mark.gpu, no_gpu]),
        # Layers in bf16 differ by what their kernels round.
        pytest.param("cuda", "bfloat16", 0.25, "v2", marks=[pytest.mark.gpu, no_gpu]),
        pytest.param("cuda", "bfloat16", 0.25, "v1", marks=[pytest.mark.gpu, no_gpu]),
    ],
)
def test_labels_are_those_of_transformers(
    device: str, dtype: str, nats: float, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner == "v1":  # a GPU takes the other one where it can
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with teacher_on(device, dtype) as teacher:
        labeled = engines.labeled(teacher, engines.text_prompts())
        found_dtype = teacher.describe().info.dtype
        assert teacher.engine.vllm_config.use_v2_model_runner == (runner == "v2")
    model = reference_model(device, dtype)
    off: list[float] = []
    same: list[bool] = []
    for item in labeled.values():
        found = agreement.compare(item, _logits(model, item, device), TEMPERATURES)
        off += [*found["normaliser"].tolist(), *found["label"].tolist()]
        same += found["same_top"].tolist()
        for index, temperature in enumerate(TEMPERATURES):
            head_N = np.logaddexp.reduce(item.rows.logits_NK / temperature, axis=1)
            tail_N = item.rows.log_tail_mass_NM[:, index] + item.rows.logsumexp_NM[:, index]
            np.testing.assert_allclose(
                np.logaddexp(head_N, tail_N), item.rows.logsumexp_NM[:, index], rtol=0, atol=1e-4
            )
        if dtype == "bfloat16":
            logits_NK = item.rows.logits_NK
            in_bf16 = torch.from_numpy(logits_NK).bfloat16().float().numpy() == logits_NK
            assert in_bf16.mean() < 0.1, "the head rounded its sums to bf16"
    assert len(same) > 250
    assert np.mean(same) >= (agreement.LEAST_SAME_TOP if dtype == "float32" else 0.95)
    assert np.percentile(off, 99) < nats
    expected = "bfloat16_float32_sums" if dtype == "bfloat16" else "float32"
    assert found_dtype == expected


def _logits(model: Any, item: Any, device: str) -> np.ndarray:
    """float64 [N, V] of the labeled positions."""
    with torch.inference_mode():
        ids = torch.as_tensor(item.token_ids_T[None].astype(np.int64), device=device)
        logits_TV = model(ids).logits[0].double().cpu().numpy()
    return logits_TV[item.label_start - 1 : item.label_start - 1 + item.rows.num_rows]
