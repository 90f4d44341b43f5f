"""Run by `test_capture_kernel.py` beside `capture_kernel_cases.py`: rows at the ends of what floats hold."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labeler.teacher.label_rows import CapturedColumns, ColumnLayout, columns_from_logits, rows_from_columns
from labeler.teacher.vllm.capture import capture_kernel, given_capture, reduction
from logitstore.errors import InvalidLabelsError
from tests.devices import PeakBytes
from tests.labeler.teacher.vllm.capture.capture_kernel_cases import assert_same

INF = float("inf")
REDUCTIONS = [capture_kernel.reduce_logits, reduction.reduce_logits]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4


def stored(rows, layout, vocab_size):
    """What the front end makes of reduced rows, or refuses."""
    columns = CapturedColumns(rows.token_ids_NC.numpy(), rows.values_NC.numpy(), rows.ranks_N.numpy())
    return rows_from_columns(columns, layout, vocab_size)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    offset=st.sampled_from((0.0, 300.0, 1e4, -1e4, 1e6)),
    temperatures=st.sampled_from(((1.0,), (0.1, 1.0), (1.0, 100.0), (0.25, 0.5, 1.0, 1.5))),
    top_k=st.sampled_from((1, 7, 64, 256)),
    vocab_size=st.sampled_from((257, 1000, 2049)),
)
def test_masses_are_as_exact_where_all_logits_are_large(seed, offset, temperatures, top_k, vocab_size):
    """Masses say how far sums lie apart, so what all logits have in common costs them nothing."""
    logits_NV, label_ids_N = normal(2, vocab_size, seed=seed) + offset, torch.tensor([0, vocab_size - 1])
    layout = ColumnLayout(top_k, temperatures)
    masses = slice(top_k + 1 + layout.num_temperatures, -1)
    exact_NC = columns_from_logits(logits_NV.numpy(), label_ids_N.numpy(), layout).values_NC[:, masses]
    top_NK = torch.topk(logits_NV, top_k).indices
    found = [reduce(logits_NV, label_ids_N, layout) for reduce in REDUCTIONS]
    found += [
        module.reduce_at_ids(logits_NV, label_ids_N, top_NK, layout)
        for module in (capture_kernel, given_capture)
    ]
    for rows in found:
        np.testing.assert_allclose(rows.values_NC[:, masses].numpy(), exact_NC, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("place", [0, 63, 64, 299])
def test_a_row_of_one_finite_logit_holds_that_one(place, top_k):
    logits_NV = torch.full((1, 300), -INF)
    logits_NV[0, place] = 5.0
    layout = ColumnLayout(top_k, (1.0, 2.0))
    for reduce in REDUCTIONS:
        rows = stored(reduce(logits_NV, torch.tensor([place]), layout), layout, 300)
        assert (rows.count_N[0], rows.token_ids_NK[0, 0], rows.logits_NK[0, 0]) == (1, place, 5.0)
        assert rows.label_logprob_N[0] == 0
        assert np.isneginf(rows.log_tail_mass_NM).all()


@pytest.mark.parametrize("value", [INF, float("nan"), -float("nan")])
@pytest.mark.parametrize("place", [0, 63, 64, 299])
def test_a_row_that_is_no_distribution_is_refused_and_named(place, value):
    """Wherever it stands: among the stored entries, in their groups or far from them."""
    logits_NV = normal(3, 300)
    logits_NV[1, place] = value
    layout, label_ids_N = ColumnLayout(2, (1.0, 2.0)), torch.tensor([70, 71, 72])
    for reduce in REDUCTIONS:
        with pytest.raises(InvalidLabelsError, match=r"1 of 3 label rows .*first: row 1"):
            stored(reduce(logits_NV, label_ids_N, layout), layout, 300)


def test_a_row_without_any_finite_logit_is_refused():
    layout = ColumnLayout(4, (1.0, 2.0))
    for reduce in REDUCTIONS:
        with pytest.raises(InvalidLabelsError, match="2 of 2 label rows"):
            stored(reduce(torch.full((2, 300), -INF), torch.tensor([0, 299]), layout), layout, 300)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.bfloat16, 3.38e38), (torch.float32, 3.4e38), (torch.float16, 65504.0)]
)
def test_the_largest_and_smallest_numbers_of_a_dtype(dtype, largest):
    logits_NV = torch.zeros((2, 300), dtype=dtype)
    logits_NV[:, 65], logits_NV[:, 3] = largest, -largest
    assert_same(logits_NV, torch.tensor([65, 3]), ColumnLayout(8, (1.0, 2.0)))


@pytest.mark.parametrize("top_k", [1, 3, 5, 64])
def test_ties_over_the_border_of_a_group_go_to_the_lower_ids(top_k):
    logits_NV = normal(2, 5000)
    logits_NV[:, 62:67] = 50.0
    logits_NV[:, 2046:2050] = 50.0
    assert_same(logits_NV, torch.tensor([64, 4999]), ColumnLayout(top_k, (1.0, 2.0)))


def test_no_rows_give_no_rows():
    nothing_NV, ids_N = torch.empty((0, 300)), torch.empty(0, dtype=torch.int64)
    layout = ColumnLayout(8, (1.0,))
    found = [reduce(nothing_NV, ids_N, layout) for reduce in REDUCTIONS]
    given_NK = torch.empty((0, 8), dtype=torch.int32)
    found.append(capture_kernel.reduce_at_ids(nothing_NV, ids_N, given_NK, layout))
    found.append(given_capture.reduce_at_ids(nothing_NV, ids_N, given_NK, layout))
    assert {tuple(rows.values_NC.shape) for rows in found} == {(0, layout.num_columns)}


@pytest.mark.parametrize(("stride", "num_rows"), [(2**31 + 64, 2), (1_200_000_000, 3)])
def test_rows_beyond_the_two_thousand_millionth_logit(stride, num_rows):
    """Rows times vocabulary overflow int32 in a large step; the memory between the rows is never touched."""
    try:
        wide = torch.empty(stride * (num_rows - 1) + 300, dtype=torch.bfloat16)
    except RuntimeError as error:  # by a limit, or where memory is not lent beyond what there is
        pytest.skip(f"{stride * (num_rows - 1) * 2 / 1e9:.0f} GB of addresses are refused: {error}")
    logits_NV = wide.as_strided((num_rows, 300), (stride, 1))
    logits_NV.copy_(normal(num_rows, 300))
    assert_same(logits_NV, torch.arange(num_rows), ColumnLayout(16, (1.0, 2.0)))


def test_what_a_step_copies_to_the_device_is_copied_once():
    """A copy from the host makes the host wait for all that the GPU has still to do."""
    logits_NV, label_ids_N = normal(2, 300), torch.arange(2)
    capture_kernel.group_statistics(logits_NV, label_ids_N, (1.0, 3.0))
    before = capture_kernel._inverses.cache_info()
    capture_kernel.group_statistics(logits_NV, label_ids_N, (1.0, 3.0))
    after = capture_kernel._inverses.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


@pytest.mark.parametrize("top_k", [16, 64, 256])
@pytest.mark.parametrize("vocab_size", [151_936, 2**20])
def test_scratch_memory_of_a_step_is_what_is_set_aside(top_k, vocab_size, monkeypatch):
    """Of one block, not of the one before it as well; counted where the kernels are not run."""

    class NoKernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: None

    for name in ("group_statistics_kernel", "group_columns_kernel", "tail_masses_kernel"):
        monkeypatch.setattr(capture_kernel, name, NoKernel())
    monkeypatch.setattr(capture_kernel, "_inverses", lambda temperatures, device: None)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    layout = ColumnLayout(top_k, (1.0, 2.0, 4.0))
    logits_NV = torch.empty((4096, vocab_size), dtype=torch.bfloat16, device="meta")
    label_ids_N = torch.empty(4096, dtype=torch.int64, device="meta")
    given_NK = torch.empty((4096, top_k), dtype=torch.int32, device="meta")
    with PeakBytes() as top:
        capture_kernel.reduce_logits(logits_NV, label_ids_N, layout)
    with PeakBytes() as given_ids:
        capture_kernel.reduce_at_ids(logits_NV, label_ids_N, given_NK, layout)
    rows_bytes = 4096 * (layout.num_columns * 2 * 4 + 16)
    for peak in (top, given_ids):
        assert (
            0.7 * capture_kernel.SCRATCH_BYTES < peak.most - rows_bytes < 1.05 * capture_kernel.SCRATCH_BYTES
        )
