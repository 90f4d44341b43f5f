"""The capture's reduction on a GPU: one kernel of `kernels.py` reads the logits once, what follows is small.

The first kernel writes, for each group of `GROUP` columns, maximum and sums of exp((x - maximum) / T). The K
groups with the highest maxima hold the top K, so only their columns are read again and sorted. The tail is
the sum over the other groups and over the candidates that are not stored; nothing is subtracted. Of equal
logits the lower id comes first. Where ids are given, the candidates are the columns of their groups. The
Torch code of `reduction.py` and `given_capture.py` is the reference.

Candidates and masses have kernels of their own because each operation of Torch costs the host microseconds:
of a hundred small ones the GPU would wait for the host.

Imports triton: only `reduction.py` and `given_capture.py` import this, and late.

Shape legend: N rows, B rows of a block, V vocabulary, G groups, P kernel programs of a row, K stored entries,
S candidates, M temperatures, C columns.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.capture.kernels import (
    group_columns_kernel,
    group_statistics_kernel,
    tail_masses_kernel,
)
from labeler.teacher.vllm.capture.reduction import ReducedRows, finish_rows

GROUP = 64
"""Columns per group."""
PROGRAM_GROUPS = 32
"""Groups that a program of the first kernel reads: 2,048 columns."""
CHOSEN_GROUPS = 16
"""Chosen groups of which a program writes the candidates."""
MASS_BLOCK = 1024
"""Groups or candidates that a program sums at a time."""
SCRATCH_BYTES = 256 << 20
GROUP_BYTES = 12
"""Scratch of one group beside its sums: its maximum and its key."""
CANDIDATE_BYTES = 14
"""Scratch of one candidate: its key, its value, and two masks of what is stored."""


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """What one read of a block leaves."""

    maxima_BG: torch.Tensor
    """float32."""
    keys_BG: torch.Tensor
    """int64, of the maxima and their groups."""
    sums_BMG: torch.Tensor
    """float32, sums of exp((x - maximum) / T), temperatures as in the layout."""
    ranks_B: torch.Tensor
    """int64, ids with a logit of at least the label's."""


@functools.cache
def _inverses(temperatures: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """1 / T on the device. Made once: a copy from the host waits for all that the GPU has still to do."""
    inverses = [1.0 / temperature for temperature in temperatures]
    return torch.tensor(
        inverses, dtype=torch.float32, device=device
    )  # whatever the model's code made default


def group_statistics(
    logits_BV: torch.Tensor, label_ids_B: torch.Tensor, temperatures: tuple[float, ...]
) -> GroupStatistics:
    """Run the first kernel on rows that are contiguous along V; any float dtype."""
    num_rows, vocab_size = logits_BV.shape
    num_groups = triton.cdiv(vocab_size, GROUP)
    num_programs = triton.cdiv(num_groups, PROGRAM_GROUPS)
    count = len(temperatures)
    squared = sum(1 << i for i in range(count - 1) if temperatures[i + 1] == 2 * temperatures[i])
    maxima_BG = logits_BV.new_empty((num_rows, num_groups), dtype=torch.float32)
    keys_BG = logits_BV.new_empty((num_rows, num_groups), dtype=torch.int64)
    sums_BMG = logits_BV.new_empty((num_rows, count, num_groups), dtype=torch.float32)
    counts_BP = logits_BV.new_empty((num_rows, num_programs), dtype=torch.int32)
    with torch.cuda.device_of(logits_BV):  # Triton launches on the current device
        group_statistics_kernel[(num_rows, num_programs)](
            logits_BV,
            logits_BV.stride(0),
            vocab_size,
            label_ids_B,
            _inverses(temperatures, logits_BV.device),
            maxima_BG,
            keys_BG,
            sums_BMG,
            counts_BP,
            num_groups,
            NUM_TEMPERATURES=count,  # type: ignore[arg-type]
            SQUARED=squared,  # type: ignore[arg-type]
            PROGRAM_GROUPS=PROGRAM_GROUPS,  # type: ignore[arg-type]
            GROUP=GROUP,  # type: ignore[arg-type]
        )
    return GroupStatistics(maxima_BG, keys_BG, sums_BMG, counts_BP.sum(dim=1))


def reduce_logits(logits_NV: torch.Tensor, label_ids_N: torch.Tensor, layout: ColumnLayout) -> ReducedRows:
    """The same as `reduction.reduce_logits`, for logits that a kernel can reach."""
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
        given_BK = None if given_NK is None else given_NK[block].to(torch.int64)
        ranks_N[block] = _reduce_block(
            logits_NV[block],
            label_ids_N[block].contiguous(),
            given_BK,
            layout,
            token_ids_NC[block],
            values_NC[block],
        )
    return finish_rows(token_ids_NC, values_NC, ranks_N, layout)


def _reduce_block(
    logits_BV: torch.Tensor,
    label_ids_B: torch.Tensor,
    given_BK: torch.Tensor | None,
    layout: ColumnLayout,
    token_ids_BC: torch.Tensor,
    values_BC: torch.Tensor,
) -> torch.Tensor:
    """Fill all columns of a block but the sentinels and the checksum; its ranks. Its scratch ends with it."""
    statistics = group_statistics(logits_BV, label_ids_B, layout.temperatures)
    token_ids_BC[:, 0] = label_ids_B.to(torch.int32)
    values_BC[:, 0] = logits_BV.gather(1, label_ids_B.unsqueeze(1))[:, 0].float()
    if given_BK is None:
        entries = _top_entries(logits_BV, statistics, layout.top_k)
    else:
        entries = _given_entries(logits_BV, given_BK)
    stored = slice(1, layout.top_k + 1)
    token_ids_BC[:, stored], values_BC[:, stored] = entries.ids_BK.to(torch.int32), entries.head_BK
    _fill_masses(statistics, entries, layout.temperatures, values_BC)
    return statistics.ranks_B


def rows_per_block(vocab_size: int, layout: ColumnLayout) -> int:
    """Rows whose scratch memory stays within `SCRATCH_BYTES`."""
    of_groups = triton.cdiv(vocab_size, GROUP) * (4 * layout.num_temperatures + GROUP_BYTES)
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
    """Logits (float32, -inf beyond the vocabulary) and keys (int64) of the groups' columns."""
    num_rows, num_chosen = groups_BK.shape
    values_BS = logits_BV.new_empty((num_rows, num_chosen * GROUP), dtype=torch.float32)
    keys_BS = logits_BV.new_empty((num_rows, num_chosen * GROUP), dtype=torch.int64)
    with torch.cuda.device_of(logits_BV):
        group_columns_kernel[(num_rows, triton.cdiv(num_chosen, CHOSEN_GROUPS))](
            logits_BV,
            logits_BV.stride(0),
            logits_BV.shape[1],
            groups_BK,
            num_chosen,
            values_BS,
            keys_BS,
            CHOSEN_GROUPS=CHOSEN_GROUPS,  # type: ignore[arg-type]
            GROUP=GROUP,  # type: ignore[arg-type]
        )
    return values_BS, keys_BS


def _top_entries(logits_BV: torch.Tensor, statistics: GroupStatistics, top_k: int) -> _Entries:
    num_chosen = min(top_k, statistics.keys_BG.shape[1])
    groups_BK = _ids_of_keys(statistics.keys_BG.topk(num_chosen, dim=1, sorted=False).values)
    candidates_BS, keys_BS = _columns_of(logits_BV, groups_BK)
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
    candidates_BS, _ = _columns_of(logits_BV, groups_BK)
    candidates_BS.masked_fill_(repeats_BK.repeat_interleave(GROUP, dim=1), -torch.inf)
    places_K = torch.arange(given_BK.shape[1], device=given_BK.device)
    first_BK = places_K.masked_fill(repeats_BK, 0).cummax(dim=1).values
    candidates_BS.scatter_(1, first_BK * GROUP + taken_BK % GROUP, -torch.inf)
    return _Entries(given_BK.gather(1, order_BK).clamp_min(0), head_BK, groups_BK, candidates_BS)


def _fill_masses(
    statistics: GroupStatistics,
    entries: _Entries,
    temperatures: tuple[float, ...],
    values_BC: torch.Tensor,
) -> None:
    """Logsumexps and tails of a block: a tail is the other groups and the candidates that are not stored.

    The maxima of the candidates' groups are overwritten.
    """
    statistics.maxima_BG.scatter_(1, entries.groups_BK, -torch.inf)
    num_rows, num_groups = statistics.maxima_BG.shape
    top_k = entries.head_BK.shape[1]
    with torch.cuda.device_of(values_BC):
        tail_masses_kernel[(num_rows,)](
            statistics.maxima_BG,
            statistics.sums_BMG,
            num_groups,
            entries.candidates_BS,
            entries.candidates_BS.shape[1],
            entries.head_BK,
            top_k,
            _inverses(temperatures, values_BC.device),
            values_BC,
            values_BC.stride(0),
            NUM_TEMPERATURES=len(temperatures),  # type: ignore[arg-type]
            HEAD_BLOCK=triton.next_power_of_2(top_k),  # type: ignore[arg-type]
            BLOCK=MASS_BLOCK,  # type: ignore[arg-type]
        )


def _ids_of_keys(keys: torch.Tensor) -> torch.Tensor:
    return -keys & 0xFFFFFFFF
