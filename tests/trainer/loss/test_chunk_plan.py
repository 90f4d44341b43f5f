"""Sizes of chunks: a stated budget per device, and no more memory than several chunks would take."""

from __future__ import annotations

import pytest
import torch

from trainer.loss.chunk_plan import CPU_CHUNK_BYTES, GPU_CHUNK_BYTES, add_product, plan_chunks

BF16, FP32 = torch.bfloat16, torch.float32


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
def test_a_gpu_never_takes_more_than_a_chunk_and_a_float32_gradient(num_rows, hidden_size):
    found = plan(num_rows, hidden_size)
    logits_bytes = min(found.chunk_rows, num_rows) * 151_936 * 2
    gradient_bytes = 151_936 * hidden_size * found.sum_dtype.itemsize
    assert logits_bytes + gradient_bytes <= GPU_CHUNK_BYTES + 151_936 * hidden_size * (4 + 2)
    if found.chunk_rows < num_rows:
        assert logits_bytes <= GPU_CHUNK_BYTES
        assert found.chunk_rows >= 1700  # thousands of rows, and no small chunk at the end
        assert found.sum_dtype == FP32
    else:
        assert found.sum_dtype == BF16


def test_a_batch_that_fits_is_one_chunk_whose_product_rounds_once():
    assert plan(8192, 4096).chunk_rows == 8192
    assert plan(8192, 4096).sum_dtype == BF16
    assert plan(8192, 1024).chunk_rows == 2731
    assert plan(8192, 1024).sum_dtype == FP32


def test_a_float32_weight_keeps_a_float32_gradient():
    """Under autocast the product is in bf16 and the gradient is wanted in fp32."""
    assert plan(100, 1024, weight=FP32).sum_dtype == FP32


def test_a_frozen_head_keeps_to_the_budget():
    assert plan(8192, 4096, wants_weight=False).chunk_rows * 151_936 * 2 <= GPU_CHUNK_BYTES


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_products_add_up_in_the_dtype_of_the_sum(dtype):
    generator = torch.Generator().manual_seed(0)
    grad_NV = torch.randn(50, 7, generator=generator).to(dtype)
    hidden_NH = torch.randn(50, 5, generator=generator).to(dtype)
    sum_VH = torch.full((7, 5), 0.25)
    expected = 0.25 + grad_NV.double().t() @ hidden_NH.double()
    add_product(sum_VH, grad_NV, hidden_NH)
    tolerance = 1e-6 if dtype == FP32 else 2.0**-8
    assert ((sum_VH.double() - expected).abs() <= tolerance * (expected - 0.25).abs() + 1e-5).all()
