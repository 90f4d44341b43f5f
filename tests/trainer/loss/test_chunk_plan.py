"""Sizes of chunks: a stated budget per device, and no more memory than several chunks would take."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import trainer.loss
from tests.devices import PeakBytes
from trainer.loss.chunk_plan import CPU_CHUNK_BYTES, GPU_CHUNK_BYTES, ChunkPlan, add_product, plan_chunks
from trainer.loss.loss_inputs import LossRows
from trainer.loss.loss_settings import LossSettings
from trainer.loss.projection import HeadForm, Projection

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
STATISTICS = ("max_N", "scaled_sum_N", "sum_N", "total_N")


def plan(
    num_rows, hidden_size, *, device="meta", weight=BF16, logits=BF16, wants_weight=True, chunk_rows=None
):
    """Of a head of Qwen3's vocabulary; "meta" stands for any device but a CPU."""
    weight_VH = torch.empty(151_936, hidden_size, device=device, dtype=weight)
    return plan_chunks(num_rows, weight_VH, logits, FP32, chunk_rows=chunk_rows, wants_weight=wants_weight)


def test_a_cpu_takes_what_fits_its_budget():
    found = plan(8192, 8, device="cpu", weight=FP32, logits=FP32)
    assert found.chunk_rows == CPU_CHUNK_BYTES // (4 * 151_936) == 220
    assert plan(8192, 8, device="cpu", chunk_rows=7).chunk_rows == 7


@pytest.mark.parametrize("hidden_size", [1024, 4096])
@pytest.mark.parametrize("num_rows", [0, 1, 3000, 5000, 8192, 12_000, 100_000])
def test_a_gpu_takes_no_more_for_logits_than_its_budget_or_the_gradient(num_rows, hidden_size):
    found = plan(num_rows, hidden_size)
    logits_bytes = min(found.chunk_rows, num_rows) * 151_936 * 2
    assert logits_bytes <= max(GPU_CHUNK_BYTES, 151_936 * hidden_size * 2)
    if found.chunk_rows < num_rows:
        assert found.chunk_rows >= 1700  # thousands of rows, and no small chunk at the end
    assert found.sum_dtype == (BF16 if num_rows <= 2 * found.chunk_rows else FP32)


def test_two_chunks_at_most_are_added_up_in_the_dtype_of_the_weight():
    assert plan(8192, 4096) == ChunkPlan(4096, BF16)
    assert plan(8193, 4096) == ChunkPlan(2731, FP32)
    assert plan(8192, 1024) == ChunkPlan(2731, FP32)
    assert plan(8192, 1024, chunk_rows=4096) == ChunkPlan(4096, BF16)


@pytest.mark.slow
def test_a_step_takes_at_most_twice_the_memory_of_ligers(monkeypatch):
    """1.30 GiB on an H200 (8,192 tokens, vocabulary 151,936, hidden 4,096, bf16); here without its numbers."""
    kernels = SimpleNamespace(
        Passes=SimpleNamespace,
        RestGradient=SimpleNamespace,
        rest_statistics=lambda logits_NV, passes: SimpleNamespace(
            **{name: torch.empty(len(logits_NV), device="meta") for name in STATISTICS}
        ),
        write_rest_gradient=lambda logits_NV, gradient, passes: None,
    )
    monkeypatch.setitem(sys.modules, "trainer.loss.row_kernels", kernels)
    monkeypatch.setattr(trainer.loss, "row_kernels", kernels, raising=False)
    rows = LossRows(
        position_N=torch.empty(8192, dtype=torch.long, device="meta"),
        labels_N=torch.empty(8192, dtype=torch.long, device="meta"),
        token_ids_NK=torch.empty(8192, 64, dtype=torch.long, device="meta"),
        logprobs_NK=torch.empty(8192, 64, device="meta"),
        tail_logprob_N=torch.empty(8192, device="meta"),
        mask_NK=torch.empty(8192, 64, dtype=torch.bool, device="meta"),
    )
    hidden_NH = torch.empty(8192, 4096, dtype=BF16, device="meta")
    weight_VH = torch.empty(151_936, 4096, dtype=BF16, device="meta")
    head = HeadForm(151_936, 1.0, None, None, BF16, "triton", needs_gradient=True)
    settings = LossSettings(temperature=2.0)
    with PeakBytes() as peak:
        projection = Projection(hidden_NH, weight_VH, None, head, [True, True, False])
        for start in range(0, 8192, projection.plan.chunk_rows):
            part = rows.slice(start, start + projection.plan.chunk_rows)
            projection.chunk_losses(part, start, settings)
        made = projection.gradients()
        del projection
        scaled = [gradient * 2 for gradient in made if gradient is not None]  # the backward pass
    assert len(scaled) == 2
    # Outside stand the rows' hidden states, once more in the dtype of the model.
    gib = (peak.most + 8192 * 4096 * 2) / 2**30
    assert 2.3 < gib < 2 * 1.30


def test_a_float32_weight_keeps_a_float32_gradient():
    """Under autocast the product is in bf16 and the gradient is wanted in fp32."""
    assert plan(100, 1024, weight=FP32).sum_dtype == FP32


def test_a_float16_weight_keeps_a_float32_gradient():
    """What is small in it is lost in float16 before the loss's scale reaches it."""
    assert plan(100, 1024, weight=FP16, logits=FP16).sum_dtype == FP32


def test_a_frozen_head_keeps_to_the_budget():
    assert plan(8192, 4096, wants_weight=False).chunk_rows * 151_936 * 2 <= GPU_CHUNK_BYTES


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_products_add_up_in_the_dtype_of_the_sum(dtype, factor):
    generator = torch.Generator().manual_seed(0)
    grad_NV = torch.randn(50, 7, generator=generator).to(dtype)
    hidden_NH = torch.randn(50, 5, generator=generator).to(dtype)
    sum_VH = torch.full((7, 5), 0.25)
    expected = 0.25 + factor * grad_NV.double().t() @ hidden_NH.double()
    add_product(sum_VH, grad_NV, hidden_NH, factor)
    tolerance = 1e-6 if dtype == FP32 else 2.0**-8
    assert ((sum_VH.double() - expected).abs() <= tolerance * (expected - 0.25).abs() + 1e-5).all()
