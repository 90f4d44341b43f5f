"""The two passes over a chunk's logits on a GPU, as Triton kernels.

`rest_statistics` reads the logits once and leaves a few numbers per row; `write_rest_gradient` overwrites
them by the gradient. Both take the logits as the product made them (float32, bfloat16 or float16): bias and
soft cap are applied on the way in float32, and every sum is in float32. Logits of -inf take no part: their
gradient is 0.

Imports triton: only `kernel_losses.py` imports this, and late.

Shape legend: N rows of the chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Columns that a program reads at a time."""
NUM_WARPS = 8


@triton.jit
def _load_logits(  # noqa: ANN202
    row_ptr,  # noqa: ANN001
    columns,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    cap,  # noqa: ANN001
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """cap tanh((product + bias) / cap) in float32; -inf where the product is, and beyond the vocabulary."""
    inside = columns < vocab_size
    product = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    z = product
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=inside, other=0.0)
    if HAS_CAP:
        z = cap * (2.0 * tl.sigmoid(2.0 * z / cap) - 1.0)
        z = tl.where(product == float("-inf"), float("-inf"), z)
    return z


@triton.jit
def _rest_statistics(  # noqa: ANN202
    logits_ptr,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    cap,  # noqa: ANN001
    inverse_temperature,  # noqa: ANN001
    maxima_ptr,  # noqa: ANN001
    scaled_sums_ptr,  # noqa: ANN001
    sums_ptr,  # noqa: ANN001
    totals_ptr,  # noqa: ANN001
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TWO_SUMS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. The sums are rescaled whenever a block raises the maximum."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    sums = tl.zeros([BLOCK], tl.float32)
    scaled_sums = tl.zeros([BLOCK], tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    maximum = tl.max(tl.full([BLOCK], float("-inf"), tl.float32), axis=0)
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = _load_logits(row_ptr, columns, vocab_size, bias_ptr, cap, HAS_BIAS, HAS_CAP)
        raised = tl.maximum(maximum, tl.max(z, axis=0))
        # All -inf so far: any finite reference gives sums of 0.
        reference = tl.where(raised == float("-inf"), 0.0, raised)
        sums = sums * tl.exp(maximum - reference) + tl.exp(z - reference)
        if TWO_SUMS:
            scaled_sums = scaled_sums * tl.exp((maximum - reference) * inverse_temperature)
            scaled_sums += tl.exp((z - reference) * inverse_temperature)
        if HAS_TOTAL:
            totals += tl.where(z == float("-inf"), 0.0, z)
        maximum = raised
    tl.store(maxima_ptr + row, maximum)
    tl.store(sums_ptr + row, tl.sum(sums, axis=0))
    if TWO_SUMS:
        tl.store(scaled_sums_ptr + row, tl.sum(scaled_sums, axis=0))
    if HAS_TOTAL:
        tl.store(totals_ptr + row, tl.sum(totals, axis=0))


@triton.jit
def _write_rest_gradient(  # noqa: ANN202
    logits_ptr,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    cap,  # noqa: ANN001
    inverse_temperature,  # noqa: ANN001
    references_ptr,  # noqa: ANN001
    scaled_factors_ptr,  # noqa: ANN001
    factors_ptr,  # noqa: ANN001
    constants_ptr,  # noqa: ANN001
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TWO_SUMS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block). What it reads it overwrites, so no other program may read it."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = _load_logits(row_ptr, columns, vocab_size, bias_ptr, cap, HAS_BIAS, HAS_CAP)
    shifted = z - tl.load(references_ptr + row)
    gradient = tl.load(factors_ptr + row) * tl.exp(shifted)
    if TWO_SUMS:
        gradient += tl.load(scaled_factors_ptr + row) * tl.exp(shifted * inverse_temperature)
    if HAS_TOTAL:
        gradient += tl.load(constants_ptr + row)
    if HAS_CAP:
        gradient *= 1.0 - (z / cap) * (z / cap)
    gradient = tl.where(z == float("-inf"), 0.0, gradient)
    tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=columns < vocab_size)


@dataclass(frozen=True, slots=True)
class Passes:
    """What both passes over a chunk have in common."""

    bias_V: Tensor | None
    """float32, contiguous; added to the product."""
    softcap: float | None
    temperature: float
    two_sums: bool
    """Whether sums at the temperature are wanted beside those at 1."""
    has_total: bool
    """Whether the sum of the logits themselves is wanted."""


@dataclass(frozen=True, slots=True)
class RestStatistics:
    """float32 [N] each, over the logits of a row that are not -inf."""

    max_N: Tensor
    """-inf if there are none."""
    scaled_sum_N: Tensor
    """Sum of exp((z - max) / T); `sum_N` itself unless `two_sums`."""
    sum_N: Tensor
    """Sum of exp(z - max)."""
    total_N: Tensor
    """Sum of z; meaningless unless `has_total`."""


@dataclass(frozen=True, slots=True)
class RestGradient:
    """Per row, the gradient factor exp(z - reference) + scaled factor exp((z - reference) / T) + constant."""

    reference_N: Tensor
    scaled_factor_N: Tensor
    """Used only with `two_sums`."""
    factor_N: Tensor
    constant_N: Tensor
    """Used only with `has_total`."""


def rest_statistics(logits_NV: Tensor, passes: Passes) -> RestStatistics:
    """Read the logits, contiguous along V, once."""
    made = [torch.empty(len(logits_NV), device=logits_NV.device, dtype=torch.float32) for _ in range(4)]
    if len(logits_NV):
        with torch.cuda.device_of(logits_NV):  # Triton launches on the current device
            _rest_statistics[(len(logits_NV),)](
                *_arguments(logits_NV, passes),
                *made,
                *_constants(passes),
                num_warps=NUM_WARPS,  # pyright: ignore[reportCallIssue]
            )
    max_N, scaled_sum_N, sum_N, total_N = made
    return RestStatistics(max_N, scaled_sum_N if passes.two_sums else sum_N, sum_N, total_N)


def write_rest_gradient(logits_NV: Tensor, gradient: RestGradient, passes: Passes) -> None:
    """Overwrite the logits by the derivative by the product (before bias and cap), rounded once."""
    if len(logits_NV):
        per_row = (
            gradient.reference_N,
            gradient.scaled_factor_N,
            gradient.factor_N,
            gradient.constant_N,
        )
        grid = (len(logits_NV), triton.cdiv(logits_NV.shape[1], BLOCK))
        with torch.cuda.device_of(logits_NV):
            _write_rest_gradient[grid](
                *_arguments(logits_NV, passes),
                *(values_N.contiguous() for values_N in per_row),
                *_constants(passes),
                num_warps=NUM_WARPS,  # pyright: ignore[reportCallIssue]
            )


def _arguments(logits_NV: Tensor, passes: Passes) -> tuple[Tensor | int | float, ...]:
    return (
        logits_NV,
        logits_NV.stride(0),
        logits_NV.shape[1],
        logits_NV if passes.bias_V is None else passes.bias_V,  # any pointer where it is not read
        1.0 if passes.softcap is None else passes.softcap,
        1.0 / passes.temperature,
    )


def _constants(passes: Passes) -> tuple[bool | int, ...]:
    return passes.bias_V is not None, passes.softcap is not None, passes.two_sums, passes.has_total, BLOCK
