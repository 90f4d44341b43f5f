"""The Triton kernels of the capture: groups in one read of the logits, columns of some groups, and masses.

`capture_kernel.py` launches them and says what they are for. Imports triton: only that module imports this.

Shape legend: that of `capture_kernel.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _order_keys(values, ids):  # noqa: ANN001, ANN202
    """int64 that order as (value descending, id ascending) does, highest first; -0.0 counts as 0.0."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) - ids


@triton.jit
def group_statistics_kernel(  # noqa: ANN201
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
def group_columns_kernel(  # noqa: ANN201
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
def tail_masses_kernel(  # noqa: ANN201
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
