"""The capture's reduction on a GPU: one Triton kernel reads the logits once, what follows is small.

The kernel writes, for each group of `GROUP` columns, the maximum and the sums of exp((x - maximum) / T). The
K groups with the highest maxima hold the top K, so only their columns are read again and sorted. The tail is
the sum over the other groups and over the candidates that are not stored; nothing is subtracted. Of equal
logits the lower id comes first. Where ids are given, the candidates are the columns of their groups. The
Torch code of `reduction.py` and `given_capture.py` is the reference.

Candidates and masses have kernels of their own because each operation of Torch costs the host microseconds:
of a hundred small ones the GPU would wait for the host.

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


@triton.jit
def _order_keys(values, ids):  # noqa: ANN001, ANN202
    """int64 that order as (value descending, id ascending) does, highest first; -0.0 counts as 0.0."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) - ids


@triton.jit
def _group_statistics(  # noqa: ANN202
    logits_ptr,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    label_ids_ptr,  # noqa: ANN001
    inverse_temperatures_ptr,  # noqa: ANN001
    maxima_ptr,  # noqa: ANN001
    keys_ptr,  # noqa: ANN001
    sums_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    num_groups,  # noqa: ANN001
    NUM_TEMPERATURES: tl.constexpr,
    SQUARED: tl.constexpr,
    PROGRAM_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Program (row, p): maxima and their keys [B, G], sums [B, M, G], counts [B, P]."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * PROGRAM_GROUPS + tl.arange(0, PROGRAM_GROUPS)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = columns < vocab_size
    row_ptr = logits_ptr + row * row_stride
    x = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    maxima = tl.max(x, axis=1)
    is_group = groups < num_groups
    tl.store(maxima_ptr + row * num_groups + groups, maxima, mask=is_group)
    tl.store(keys_ptr + row * num_groups + groups, _order_keys(maxima, groups), mask=is_group)
    label = tl.load(row_ptr + tl.load(label_ids_ptr + row)).to(tl.float32)
    at_least = ((x >= label) & inside).to(tl.int32)
    count = tl.sum(tl.sum(at_least, axis=1), axis=0)
    tl.store(counts_ptr + row * tl.num_programs(1) + tl.program_id(1), count)
    # A group of -inf alone: any finite reference gives sums of 0.
    shifted = x - tl.where(maxima == float("-inf"), 0.0, maxima)[:, None]
    powers = shifted
    for step in tl.static_range(NUM_TEMPERATURES):  # type: ignore[misc]
        index = NUM_TEMPERATURES - 1 - step  # the highest temperature first
        if (SQUARED >> index) & 1:
            # exp(x / T) from exp(x / 2T).
            powers = powers * powers
        else:
            powers = tl.exp(shifted * tl.load(inverse_temperatures_ptr + index))
        sums_row = sums_ptr + (row * NUM_TEMPERATURES + index) * num_groups
        tl.store(sums_row + groups, tl.sum(powers, axis=1), mask=is_group)


@triton.jit
def _group_columns(  # noqa: ANN202
    logits_ptr,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    vocab_size,  # noqa: ANN001
    groups_ptr,  # noqa: ANN001
    num_chosen,  # noqa: ANN001
    values_ptr,  # noqa: ANN001
    keys_ptr,  # noqa: ANN001
    CHOSEN_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Program (row, p): values (-inf beyond the vocabulary) and keys of the chosen groups' columns [B, S]."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    places = tl.program_id(1) * CHOSEN_GROUPS + tl.arange(0, CHOSEN_GROUPS)
    is_chosen = places < num_chosen
    groups = tl.load(groups_ptr + row * num_chosen + places, mask=is_chosen, other=0)
    offsets = tl.arange(0, GROUP)[None, :]
    ids = groups[:, None] * GROUP + offsets
    inside = (ids < vocab_size) & is_chosen[:, None]
    x = tl.load(row_ptr + ids, mask=inside, other=float("-inf")).to(tl.float32)
    candidates = (row * num_chosen + places)[:, None] * GROUP + offsets
    tl.store(values_ptr + candidates, x, mask=is_chosen[:, None])
    tl.store(keys_ptr + candidates, _order_keys(x, ids), mask=is_chosen[:, None])


@triton.jit
def _tail_masses(  # noqa: ANN202
    maxima_ptr,  # noqa: ANN001
    sums_ptr,  # noqa: ANN001
    num_groups,  # noqa: ANN001
    candidates_ptr,  # noqa: ANN001
    num_candidates,  # noqa: ANN001
    head_ptr,  # noqa: ANN001
    top_k,  # noqa: ANN001
    inverse_temperatures_ptr,  # noqa: ANN001
    values_ptr,  # noqa: ANN001
    values_stride,  # noqa: ANN001
    NUM_TEMPERATURES: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row): logsumexps and log tail masses into the columns behind the stored entries.

    Both sums are taken around the tail's largest logit, so that large logits do not make the mass less exact.
    """
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    maxima_row = maxima_ptr + row * num_groups
    candidates_row = candidates_ptr + row * num_candidates
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, num_groups, BLOCK):
        inside = start + places < num_groups
        x = tl.load(maxima_row + start + places, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, x)
    for start in range(0, num_candidates, BLOCK):
        inside = start + places < num_candidates
        x = tl.load(candidates_row + start + places, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, x)
    reference = tl.max(highest, axis=0)
    # All -inf: nothing lies outside the stored entries, and any finite reference will do.
    reference = tl.where(reference == float("-inf"), 0.0, reference)
    entries = tl.arange(0, HEAD_BLOCK)
    head = tl.load(head_ptr + row * top_k + entries, mask=entries < top_k, other=float("-inf")) - reference
    head_maximum = tl.max(head, axis=0)
    head_maximum = tl.where(head_maximum == float("-inf"), 0.0, head_maximum)
    values_row = values_ptr + row * values_stride + top_k + 1
    for index in tl.static_range(NUM_TEMPERATURES):  # type: ignore[misc]
        inverse = tl.load(inverse_temperatures_ptr + index)
        sums_row = sums_ptr + (row * NUM_TEMPERATURES + index) * num_groups
        tail = tl.zeros([BLOCK], tl.float32)
        for start in range(0, num_groups, BLOCK):
            inside = start + places < num_groups
            x = tl.load(maxima_row + start + places, mask=inside, other=float("-inf"))
            sums = tl.load(sums_row + start + places, mask=inside, other=0.0)
            weighted = tl.where(x == float("-inf"), 0.0, sums * tl.exp((x - reference) * inverse))
            # A NaN in any of them must reach the row, which is then refused.
            tail += tl.where(sums == sums, weighted, sums)
        for start in range(0, num_candidates, BLOCK):
            inside = start + places < num_candidates
            x = tl.load(candidates_row + start + places, mask=inside, other=float("-inf"))
            tail += tl.exp((x - reference) * inverse)
        log_tail = tl.log(tl.sum(tail, axis=0))
        log_head = head_maximum * inverse + tl.log(tl.sum(tl.exp((head - head_maximum) * inverse), axis=0))
        larger = tl.maximum(log_head, log_tail)
        log_whole = larger + tl.log(tl.exp(log_head - larger) + tl.exp(log_tail - larger))
        mass = log_tail - log_whole
        tl.store(values_row + index, log_whole + reference * inverse)
        tl.store(values_row + NUM_TEMPERATURES + index, tl.where(mass > 0.0, 0.0, mass))


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
    return torch.tensor([1.0 / temperature for temperature in temperatures], device=device)


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
        _group_statistics[(num_rows, num_programs)](
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
        _group_columns[(num_rows, triton.cdiv(num_chosen, CHOSEN_GROUPS))](
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
        _tail_masses[(num_rows,)](
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
