"""Full logits to the columns that leave the worker: top entries, exact normalisers and tail masses.

In Torch, for any device; on a CUDA device `capture_kernel.py` stands in where it agrees.

Shape legend: N rows, B rows of a block, V vocabulary, K stored entries, C columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from labeler.teacher.known_vllm import Runner
from labeler.teacher.label_rows import CHECKSUM_MASK, ColumnLayout

CPU_BLOCK_ROWS = 8
"""Rows per block on a CPU: 8 x 49,152 x 4 B stay in the second-level cache through all the passes."""
DEVICE_BLOCK_BYTES = 256 << 20
"""Scratch memory of a block on an accelerator."""
CHUNK = 64
"""Columns per chunk of the two-level top-K."""
PADDING = 64
"""vLLM makes heads a multiple of it wide, and hands over rows of logits with what is too much cut off."""


@dataclass(frozen=True, slots=True)
class ReducedRows:
    """Full logits reduced to the columns that leave the worker."""

    token_ids_NC: torch.Tensor
    """int32."""
    values_NC: torch.Tensor
    """float32."""
    ranks_N: torch.Tensor
    """int32."""


Reduce = Callable[[torch.Tensor, torch.Tensor, ColumnLayout], ReducedRows]


@dataclass(frozen=True, slots=True)
class Reduction:
    """By which code the logits are reduced."""

    reduce: Reduce
    note: str
    """For the log: "triton" or "torch", with the reason where a GPU does without the kernel."""


@dataclass(frozen=True, slots=True)
class LogitsForm:
    """How an engine hands over its logits. Triton compiles for it, which should not be in its first step."""

    device: torch.device
    vocab_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model_runner: Any, runner: Runner) -> LogitsForm:
        """The V1 runner hands them over in float32, the V2 runner as its head makes them."""
        model = model_runner.model_config
        dtype = torch.float32 if runner == "v1" else model.head_dtype
        return cls(model_runner.device, model.get_vocab_size(), dtype)


def choose_reduction(form: LogitsForm, layout: ColumnLayout) -> Reduction:
    """The Triton kernels on a CUDA device if they compile and agree with the Torch code; else that code."""
    if form.device.type != "cuda":
        return Reduction(reduce_logits, "torch")
    label_ids_N = torch.arange(4, device=form.device) % form.vocab_size

    def by_kernel(logits_NV: torch.Tensor) -> ReducedRows:
        from labeler.teacher.vllm.capture import capture_kernel

        return capture_kernel.reduce_logits(logits_NV, label_ids_N, layout)

    fault = kernel_fault(form, by_kernel, lambda logits_NV: reduce_logits(logits_NV, label_ids_N, layout))
    if fault is not None:
        return Reduction(reduce_logits, f"torch, because the Triton kernels {fault}")
    from labeler.teacher.vllm.capture import capture_kernel

    return Reduction(capture_kernel.reduce_logits, "triton")


def kernel_fault(
    form: LogitsForm,
    by_kernel: Callable[[torch.Tensor], ReducedRows],
    by_torch: Callable[[torch.Tensor], ReducedRows],
) -> str | None:
    """What keeps the kernels from standing in for the Torch code: they fail, or disagree; None if nothing."""
    # All different in float32, as neither code promises the other's order of equal logits.
    num_values = 1 << (4 * form.vocab_size - 1).bit_length()
    places_NV = torch.arange(4 * form.vocab_size, device=form.device).view(4, -1) * 7919 % num_values
    # Triton compiles for rows that lie apart by a multiple of 16 as well as for others.
    padded = -(-form.vocab_size // PADDING) * PADDING
    forms = itertools.product((torch.float32, form.dtype), (form.vocab_size, padded))
    for dtype, row_stride in dict.fromkeys(forms):
        wide_NV = torch.empty((4, row_stride), dtype=dtype, device=form.device)
        logits_NV = wide_NV[:, : form.vocab_size].copy_(places_NV * (32 / num_values))
        try:
            rows = by_kernel(logits_NV)
        except Exception as error:  # noqa: BLE001
            # ImportError, or whatever Triton's compiler raises on a machine that lacks what it needs.
            return f"fail: {error!r}"
        if not agrees(rows, by_torch(logits_NV), same_ids=dtype == torch.float32):
            return "disagree with it"
    return None


def agrees(rows: ReducedRows, expected: ReducedRows, *, same_ids: bool = True) -> bool:
    """Whether ids and ranks are the same and values within 1e-4 nats; ids may differ where logits tie."""
    ids_agree = not same_ids or torch.equal(rows.token_ids_NC[:, :-1], expected.token_ids_NC[:, :-1])
    return (
        ids_agree
        and torch.equal(rows.ranks_N, expected.ranks_N)
        and torch.allclose(rows.values_NC[:, :-1], expected.values_NC[:, :-1], rtol=0, atol=1e-4)
    )


def reduce_logits(logits_NV: torch.Tensor, label_ids_N: torch.Tensor, layout: ColumnLayout) -> ReducedRows:
    """Top entries, `logsumexp(l / T)` and log tail mass of every row, block by block.

    The tail is summed directly, with the stored entries masked out and the smallest of them as the
    reference, so that it neither cancels nor underflows; `logsumexp` is then head and tail together.
    """
    num_rows, vocab_size = logits_NV.shape
    values_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.float32)
    token_ids_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.int32)
    ranks_N = logits_NV.new_empty(num_rows, dtype=torch.int32)
    size = block_rows(logits_NV)
    scratch_BV = logits_NV.new_empty((min(size, num_rows), vocab_size), dtype=torch.float32)
    for start in range(0, num_rows, size):
        block = slice(start, min(start + size, num_rows))
        # float32 logits are used where they are: a copy would cost a pass over memory.
        logits_BV = logits_NV[block].float()
        label_B1 = label_ids_N[block].unsqueeze(1)
        _reduce_block(
            logits_BV,
            label_B1,
            layout,
            scratch_BV[: logits_BV.shape[0]],
            token_ids_NC[block],
            values_NC[block],
        )
        ranks_N[block] = _ranks(logits_BV, values_NC[block], layout.top_k)
    return finish_rows(token_ids_NC, values_NC, ranks_N, layout)


def finish_rows(
    token_ids_NC: torch.Tensor, values_NC: torch.Tensor, ranks_N: torch.Tensor, layout: ColumnLayout
) -> ReducedRows:
    """Fill in the sentinels and the checksum."""
    token_ids_NC[:, layout.top_k + 1 :] = torch.arange(
        -1, -layout.num_tail_columns - 1, -1, device=values_NC.device
    )
    values_NC[:, -1] = _checksum(token_ids_NC, values_NC)
    return ReducedRows(token_ids_NC, values_NC, ranks_N)


def block_rows(logits_NV: torch.Tensor) -> int:
    """Rows of logits to reduce at once."""
    if logits_NV.device.type == "cpu":
        return CPU_BLOCK_ROWS
    return max(1, DEVICE_BLOCK_BYTES // (4 * logits_NV.shape[1]))


def _reduce_block(
    logits_BV: torch.Tensor,
    label_ids_B1: torch.Tensor,
    layout: ColumnLayout,
    scratch_BV: torch.Tensor,
    token_ids_BC: torch.Tensor,
    values_BC: torch.Tensor,
) -> None:
    """Fill all columns of a block but the sentinels and the checksum. Overwrites `scratch_BV`."""
    top_k = layout.top_k
    head_BK, ids_BK = top_entries(logits_BV, top_k)
    token_ids_BC[:, :1], values_BC[:, :1] = label_ids_B1, logits_BV.gather(1, label_ids_B1)
    token_ids_BC[:, 1 : top_k + 1], values_BC[:, 1 : top_k + 1] = ids_BK, head_BK
    # -inf among the stored entries means that nothing lies outside them; any finite reference will do.
    reference_B1 = head_BK[:, -1:].nan_to_num(neginf=0.0)
    previous = None
    for index in reversed(range(layout.num_temperatures)):
        temperature = layout.temperatures[index]
        shift_B1 = reference_B1 / temperature
        if previous == 2 * temperature:
            # exp(x / T) from exp(x / 2T): one exponential serves temperatures 4, 2 and 1.
            scratch_BV.mul_(scratch_BV)
        else:
            # x / T - shift in one pass over memory.
            torch.add(-shift_B1, logits_BV, alpha=1.0 / temperature, out=scratch_BV)
            scratch_BV.scatter_(1, ids_BK, -torch.inf)
            scratch_BV.exp_()
        previous = temperature
        # The head just as the tail, so that what rounding the shift costs is the same in both.
        log_head_B = torch.add(-shift_B1, head_BK, alpha=1.0 / temperature).logsumexp(dim=1)
        fill_masses(values_BC, layout, index, log_head_B, scratch_BV.sum(dim=1).log(), shift_B1[:, 0])


def fill_masses(
    values_BC: torch.Tensor,
    layout: ColumnLayout,
    index: int,
    log_head_B: torch.Tensor,
    log_tail_B: torch.Tensor,
    shift_B: torch.Tensor,
) -> None:
    """Write a temperature's logsumexp and tail mass.

    `log_head_B` and `log_tail_B` are the logs of the sums of exp(l / T - shift) over head and tail. Large
    logits, which make a large shift, do not make the mass less exact.
    """
    log_whole_B = torch.logaddexp(log_head_B, log_tail_B)
    values_BC[:, layout.top_k + 1 + index] = log_whole_B + shift_B
    mass_B = (log_tail_B - log_whole_B).clamp(max=0.0)
    values_BC[:, layout.top_k + 1 + layout.num_temperatures + index] = mass_B


def top_entries(logits_BV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk`, on a CPU through the maxima of chunks.

    The K highest entries lie in the K chunks with the highest maxima, and finding those reads the row
    once at full speed, where a partial sort of the whole row does not.
    """
    vocab_size = logits_BV.shape[1]
    num_chunks = vocab_size // CHUNK
    if logits_BV.device.type != "cpu" or num_chunks < 4 * top_k:
        values_BK, ids_BK = torch.topk(logits_BV, top_k, dim=1)
        return values_BK, ids_BK
    whole = num_chunks * CHUNK
    chunks_BNC = logits_BV[:, :whole].unflatten(1, (num_chunks, CHUNK))
    chosen_BK = chunks_BNC.amax(dim=2).topk(top_k, dim=1, sorted=False).indices
    candidates = chunks_BNC[torch.arange(len(logits_BV)).unsqueeze(1), chosen_BK].flatten(1)
    columns = torch.arange(CHUNK)
    candidate_ids = (chosen_BK.unsqueeze(2) * CHUNK + columns).flatten(1)
    if whole < vocab_size:
        rest = torch.arange(whole, vocab_size).expand(logits_BV.shape[0], -1)
        candidates = torch.cat([candidates, logits_BV[:, whole:]], dim=1)
        candidate_ids = torch.cat([candidate_ids, rest], dim=1)
    values_BK, places_BK = candidates.topk(top_k, dim=1)
    return values_BK, candidate_ids.gather(1, places_BK)


def _ranks(logits_BV: torch.Tensor, values_BC: torch.Tensor, top_k: int) -> torch.Tensor:
    """Ids with a logit of at least the label's, for every row of a block."""
    label_B1, head_BK = values_BC[:, :1], values_BC[:, 1 : top_k + 1]
    if logits_BV.device.type != "cpu":
        return (logits_BV >= label_B1).sum(dim=1, dtype=torch.int32)
    ranks_B = (head_BK >= label_B1).sum(dim=1, dtype=torch.int32)
    # A label above the last stored entry has everything that ranks with it among them.
    outside = (label_B1 <= head_BK[:, -1:])[:, 0].nonzero()[:, 0]
    for row in outside.tolist():
        ranks_B[row] = (logits_BV[row] >= label_B1[row]).sum()
    return ranks_B


def _checksum(token_ids_NC: torch.Tensor, values_NC: torch.Tensor) -> torch.Tensor:
    """The same sum as `labeler.teacher.label_rows.checksum`."""
    mixed_NC = (values_NC[:, :-1].view(torch.int32) ^ token_ids_NC[:, :-1]).to(torch.int64)
    weights_C = 2 * torch.arange(mixed_NC.shape[1], device=mixed_NC.device) + 1
    return ((mixed_NC * weights_C).sum(dim=1) & CHECKSUM_MASK).to(torch.float32)
