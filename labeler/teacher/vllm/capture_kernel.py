"""The capture's reduction on a GPU: one Triton kernel reads the logits once, a small second step sorts.

The kernel writes, for each group of `GROUP` columns, the maximum and the sums of exp((x - maximum) / T). The
K groups with the highest maxima hold the top K, so only their columns are sorted. The tail is the sum over
the other groups and over the candidates that are not stored; nothing is subtracted. Of equal logits the
lower id comes first. Where ids are given, the candidates are the columns of their groups. The Torch code of
`reduction.py` and `given_capture.py` is the reference.

Imports triton: only `reduction.py` imports this, and late.

Shape legend: N rows, B rows of a block, V vocabulary, G groups, P kernel programs of a row, K stored entries,
S candidates, M temperatures, C columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.reduction import ReducedRows, fill_masses, finish_rows

GROUP = 64
"""Columns per group."""
PROGRAM_GROUPS = 32
"""Groups that one kernel program reads: 2,048 columns."""
SCRATCH_BYTES = 256 << 20
CANDIDATE_BYTES = 40
"""Scratch of one candidate: its id and key (8 bytes each), its value, and the terms of the tail's sum."""


@triton.jit
def _group_statistics(  # noqa: ANN202
    logits_ptr,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    label_ids_ptr,  # noqa: ANN001
    inverse_temperatures_ptr,  # noqa: ANN001
    maxima_ptr,  # noqa: ANN001
    sums_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    num_groups,  # noqa: ANN001
    NUM_TEMPERATURES: tl.constexpr,
    SQUARED: tl.constexpr,
    PROGRAM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Program (row, p): maxima [B, G], sums [B, M, G] (temperatures descending), counts [B, P]."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * PROGRAM_GROUPS + tl.arange(0, PROGRAM_GROUPS)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = columns < vocab_size
    row_ptr = logits_ptr + row * row_stride
    x = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    maxima = tl.max(x, axis=1)
    tl.store(maxima_ptr + row * num_groups + groups, maxima, mask=groups < num_groups)
    label = tl.load(row_ptr + tl.load(label_ids_ptr + row)).to(tl.float32)
    at_least = ((x >= label) & inside).to(tl.int32)
    count = tl.sum(tl.sum(at_least, axis=1), axis=0)
    tl.store(counts_ptr + row * tl.num_programs(1) + tl.program_id(1), count)
    # A group of -inf alone: any finite reference gives sums of 0.
    shifted = x - tl.where(maxima == float("-inf"), 0.0, maxima)[:, None]
    powers = shifted
    for index in tl.static_range(NUM_TEMPERATURES):  # type: ignore[misc]
        if (SQUARED >> index) & 1:
            # exp(x / T) from exp(x / 2T).
            powers = powers * powers
        else:
            powers = tl.exp(shifted * tl.load(inverse_temperatures_ptr + index))
        sums_row = sums_ptr + (row * NUM_TEMPERATURES + index) * num_groups
        tl.store(sums_row + groups, tl.sum(powers, axis=1), mask=groups < num_groups)


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """What one read of a block leaves."""

    maxima_BG: torch.Tensor
    """float32."""
    sums_BMG: torch.Tensor
    """float32, sums of exp((x - maximum) / T), temperatures as in the layout."""
    ranks_B: torch.Tensor
    """int64, ids with a logit of at least the label's."""


@functools.cache
def _inverses(temperatures: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """1 / T on the device. Made once: a copy from the host waits for all that the GPU has still to do."""
    return torch.tensor([1.0 / temperature for temperature in temperatures], device=device)


def group_statistics(
    logits_BV: torch.Tensor, label_ids_B: torch.Tensor, temperatures: tuple[float, ...]
) -> GroupStatistics:
    """Run the kernel on rows that are contiguous along V; any float dtype."""
    num_rows, vocab_size = logits_BV.shape
    num_groups = -(-vocab_size // GROUP)
    num_programs = -(-num_groups // PROGRAM_GROUPS)
    device, count = logits_BV.device, len(temperatures)
    descending = temperatures[::-1]
    squared = sum(1 << i for i in range(1, count) if descending[i - 1] == 2 * descending[i])
    maxima_BG = torch.empty((num_rows, num_groups), dtype=torch.float32, device=device)
    sums_BMG = torch.empty((num_rows, count, num_groups), dtype=torch.float32, device=device)
    counts_BP = torch.empty((num_rows, num_programs), dtype=torch.int32, device=device)
    with torch.cuda.device_of(logits_BV):  # Triton launches on the current device
        _group_statistics[(num_rows, num_programs)](
            logits_BV,
            logits_BV.stride(0),
            vocab_size,
            label_ids_B,
            _inverses(descending, device),
            maxima_BG,
            sums_BMG,
            counts_BP,
            num_groups,
            NUM_TEMPERATURES=count,  # type: ignore[arg-type]
            SQUARED=squared,  # type: ignore[arg-type]
            PROGRAM_GROUPS=PROGRAM_GROUPS,  # type: ignore[arg-type]
            GROUP=GROUP,  # type: ignore[arg-type]
        )
    return GroupStatistics(maxima_BG, sums_BMG.flip(1), counts_BP.sum(dim=1))


def reduce_logits(logits_NV: torch.Tensor, label_ids_N: torch.Tensor, layout: ColumnLayout) -> ReducedRows:
    """The same as `capture.reduce_logits`, for logits that a kernel can reach."""
    return _reduce(logits_NV, label_ids_N, None, layout)


def reduce_at_ids(
    logits_NV: torch.Tensor, label_ids_N: torch.Tensor, given_NK: torch.Tensor, layout: ColumnLayout
) -> ReducedRows:
    """The same as `given_capture.reduce_at_ids`, for logits that a kernel can reach."""
    return _reduce(logits_NV, label_ids_N, given_NK, layout)


def _reduce(
    logits_NV: torch.Tensor,
    label_ids_N: torch.Tensor,
    given_NK: torch.Tensor | None,
    layout: ColumnLayout,
) -> ReducedRows:
    if logits_NV.stride(1) != 1:
        logits_NV = logits_NV.contiguous()
    num_rows, vocab_size = logits_NV.shape
    values_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.float32)
    token_ids_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.int32)
    ranks_N = logits_NV.new_empty(num_rows, dtype=torch.int32)
    label_ids_N = label_ids_N.to(torch.int64)
    block_rows = rows_per_block(vocab_size, layout)
    for start in range(0, num_rows, block_rows):
        block = slice(start, min(start + block_rows, num_rows))
        logits_BV, label_ids_B = logits_NV[block], label_ids_N[block].contiguous()
        statistics = group_statistics(logits_BV, label_ids_B, layout.temperatures)
        ranks_N[block] = statistics.ranks_B
        token_ids_NC[block, 0] = label_ids_B.to(torch.int32)
        values_NC[block, 0] = logits_BV.gather(1, label_ids_B.unsqueeze(1))[:, 0].float()
        if given_NK is None:
            entries = _top_entries(logits_BV, statistics, layout.top_k)
        else:
            entries = _given_entries(logits_BV, given_NK[block].to(torch.int64))
        stored = slice(1, layout.top_k + 1)
        token_ids_NC[block, stored], values_NC[block, stored] = (
            entries.ids_BK.to(torch.int32),
            entries.head_BK,
        )
        _fill_masses(statistics, entries, layout, values_NC[block])
    return finish_rows(token_ids_NC, values_NC, ranks_N, layout)


def rows_per_block(vocab_size: int, layout: ColumnLayout) -> int:
    """Rows whose scratch memory stays within `SCRATCH_BYTES`."""
    num_groups = -(-vocab_size // GROUP)
    of_groups = num_groups * (8 * layout.num_temperatures + 32)
    of_candidates = layout.top_k * GROUP * CANDIDATE_BYTES
    return max(1, SCRATCH_BYTES // (of_groups + of_candidates))


@dataclass(frozen=True, slots=True)
class _Entries:
    """The stored entries of a block, and what else lies in their groups."""

    ids_BK: torch.Tensor
    """int64."""
    head_BK: torch.Tensor
    """float32, falling."""
    groups_BK: torch.Tensor
    """int64, groups whose columns are candidates."""
    candidates_BS: torch.Tensor
    """float32, each column of these groups once; -inf in place of what is stored."""


def _columns_of(logits_BV: torch.Tensor, groups_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (int64) and logits (float32, -inf beyond the vocabulary) of the groups' columns."""
    vocab_size = logits_BV.shape[1]
    ids_BS = (groups_BK.unsqueeze(2) * GROUP + torch.arange(GROUP, device=logits_BV.device)).flatten(1)
    candidates_BS = logits_BV.gather(1, ids_BS.clamp(max=vocab_size - 1)).float()
    return ids_BS, candidates_BS.masked_fill_(ids_BS >= vocab_size, -torch.inf)


def _top_entries(logits_BV: torch.Tensor, statistics: GroupStatistics, top_k: int) -> _Entries:
    maxima_BG = statistics.maxima_BG
    num_groups = maxima_BG.shape[1]
    group_ids_G = torch.arange(num_groups, device=logits_BV.device)
    groups_BK = _ids_of_keys(_keys(maxima_BG, group_ids_G).topk(min(top_k, num_groups), dim=1).values)
    ids_BS, candidates_BS = _columns_of(logits_BV, groups_BK)
    keys_BS = _keys(candidates_BS, ids_BS)
    stored_BK = keys_BS.topk(top_k, dim=1).values
    ids_BK = _ids_of_keys(stored_BK)
    # Keys differ where values tie, so this leaves out exactly the stored entries.
    candidates_BS.masked_fill_(keys_BS >= stored_BK[:, -1:], -torch.inf)
    return _Entries(ids_BK, logits_BV.gather(1, ids_BK).float(), groups_BK, candidates_BS)


def _given_entries(logits_BV: torch.Tensor, given_BK: torch.Tensor) -> _Entries:
    """Entries at these ids (-1 for none), by falling logit."""
    real_BK = given_BK >= 0
    head_BK = logits_BV.gather(1, given_BK.clamp_min(0)).float().masked_fill_(~real_BK, -torch.inf)
    head_BK, order_BK = head_BK.sort(dim=1, descending=True, stable=True)
    # A place without an id takes out one of the row's once more, which is out already.
    taken_BK = torch.where(real_BK, given_BK, given_BK.amax(dim=1, keepdim=True).clamp_min(0))
    taken_BK = taken_BK.sort(dim=1).values
    groups_BK = taken_BK // GROUP
    repeats_BK = torch.zeros_like(real_BK)
    repeats_BK[:, 1:] = groups_BK[:, 1:] == groups_BK[:, :-1]
    _, candidates_BS = _columns_of(logits_BV, groups_BK)
    candidates_BS.masked_fill_(repeats_BK.repeat_interleave(GROUP, dim=1), -torch.inf)
    places_K = torch.arange(given_BK.shape[1], device=given_BK.device)
    first_BK = places_K.masked_fill(repeats_BK, 0).cummax(dim=1).values
    candidates_BS.scatter_(1, first_BK * GROUP + taken_BK % GROUP, -torch.inf)
    return _Entries(given_BK.gather(1, order_BK).clamp_min(0), head_BK, groups_BK, candidates_BS)


def _fill_masses(
    statistics: GroupStatistics, entries: _Entries, layout: ColumnLayout, values_BC: torch.Tensor
) -> None:
    """Logsumexps and tails of a block: a tail is the other groups and the candidates that are not stored."""
    head_BK, candidates_BS = entries.head_BK, entries.candidates_BS
    others_BG = statistics.maxima_BG.scatter(1, entries.groups_BK, -torch.inf)
    reference_B1 = torch.maximum(others_BG.amax(dim=1), candidates_BS.amax(dim=1)).unsqueeze(1)
    # All -inf: nothing lies outside the stored entries, and any finite reference will do.
    reference_B1 = reference_B1.masked_fill(reference_B1 == -torch.inf, 0.0)
    sums_BMG = statistics.sums_BMG.masked_fill((others_BG == -torch.inf).unsqueeze(1), 0.0)
    # A NaN in any of them must reach the row, which is then refused.
    sums_BMG = torch.where(statistics.sums_BMG.isnan(), statistics.sums_BMG, sums_BMG)
    for index, temperature in enumerate(layout.temperatures):
        weights_BG = torch.exp((others_BG - reference_B1) / temperature)
        tail_B = (sums_BMG[:, index] * weights_BG).sum(dim=1)
        tail_B += torch.exp((candidates_BS - reference_B1) / temperature).sum(dim=1)
        log_head_B = torch.logsumexp((head_BK - reference_B1) / temperature, dim=1)
        fill_masses(values_BC, layout, index, log_head_B, tail_B.log(), reference_B1[:, 0] / temperature)


def _keys(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 that order as (value descending, id ascending) does, highest first; -0.0 counts as 0.0."""
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) - ids


def _ids_of_keys(keys: torch.Tensor) -> torch.Tensor:
    return -keys & 0xFFFFFFFF
