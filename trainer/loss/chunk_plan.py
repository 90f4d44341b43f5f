"""How many rows are projected at a time, and in what the weight's gradient is summed, on each device.

Shape legend: N rows that count, V vocabulary, H hidden size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_CHUNK_BYTES = 128 * 2**20
"""A chunk's logits on a CPU: large enough for matrix products to run at full speed."""
GPU_CHUNK_BYTES = 2**30
"""The same on other devices, where each further chunk reads and writes the weight's whole gradient. It does
not depend on the memory that is free, so that a run repeats itself bit for bit."""
MOST_ROUNDINGS = 2
"""Chunks whose products are added up in the narrow dtype of the weight, each rounding the sum once. That sum
is the gradient itself, where one in float32 takes twice as much beside it."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Sizes of the buffers of one batch."""

    chunk_rows: int
    """Rows projected at a time."""
    sum_dtype: torch.dtype
    """In which the weight's gradient is added up over chunks."""


def plan_chunks(
    num_rows: int,
    weight_VH: Tensor,
    logits_dtype: torch.dtype,
    sum_dtype: torch.dtype,
    *,
    chunk_rows: int | None,
    wants_weight: bool,
) -> ChunkPlan:
    """Rows of a chunk, and the dtype of the weight's gradient between chunks.

    `weight_VH` is the weight that wants the gradient, `logits_dtype` that of a chunk's buffer, which on a GPU
    may take as much as the gradient does. `chunk_rows` overrides the number of rows.
    """
    vocab_size, hidden_size = weight_VH.shape
    row_bytes = vocab_size * logits_dtype.itemsize
    if weight_VH.device.type == "cpu":
        rows = chunk_rows or max(CPU_CHUNK_BYTES // (4 * vocab_size), 1)
        return ChunkPlan(rows, sum_dtype)
    is_narrow = wants_weight and weight_VH.dtype == logits_dtype not in (sum_dtype, torch.float16)
    if chunk_rows is None:
        gradient_bytes = vocab_size * hidden_size * weight_VH.dtype.itemsize if is_narrow else 0
        most_rows = max(max(GPU_CHUNK_BYTES, gradient_bytes) // row_bytes, 1)
        chunk_rows = max(-(-num_rows // max(-(-num_rows // most_rows), 1)), 1)
    rounds = is_narrow and num_rows <= MOST_ROUNDINGS * chunk_rows
    return ChunkPlan(chunk_rows, weight_VH.dtype if rounds else sum_dtype)


def add_product(sum_VH: Tensor, grad_NV: Tensor, hidden_NH: Tensor, factor: float = 1.0) -> None:
    """sum += factor grad^T hidden, in the sum's dtype; on a GPU without a [V, H] temporary."""
    if grad_NV.dtype == sum_VH.dtype:
        sum_VH.addmm_(grad_NV.t(), hidden_NH, alpha=factor)
    elif _products_widen(sum_VH.device, grad_NV.dtype, sum_VH.dtype):
        torch.addmm(sum_VH, grad_NV.t(), hidden_NH, alpha=factor, out_dtype=sum_VH.dtype, out=sum_VH)
    elif grad_NV.dtype == torch.float16:  # the product itself may be too large for it
        sum_VH.addmm_(grad_NV.t().to(sum_VH.dtype), hidden_NH.to(sum_VH.dtype), alpha=factor)
    else:
        sum_VH.add_(grad_NV.t() @ hidden_NH, alpha=factor)


@functools.cache
def _products_widen(device: torch.device, dtype: torch.dtype, sum_dtype: torch.dtype) -> bool:
    """Whether this device adds a product of narrow factors to a wide sum in place; tried once."""
    if device.type == "cpu":
        return False
    factor = torch.arange(256, device=device).remainder_(7).to(dtype).view(16, 16)
    total = torch.full((16, 16), 2.0**-12, dtype=sum_dtype, device=device)
    expected = total + (factor.to(sum_dtype).t() @ factor.to(sum_dtype)) / 8
    try:
        torch.addmm(total, factor.t(), factor, alpha=1 / 8, out_dtype=sum_dtype, out=total)
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False
    return torch.equal(total, expected)
