"""Run by `test_capture_kernel.py` in a process of its own, where Triton interprets its kernels on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labeler.teacher.label_rows import ColumnLayout, columns_from_logits
from labeler.teacher.vllm.capture import capture_kernel, given_capture, reduction

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TEMPERATURES = ((1.0,), (1.0, 2.0, 4.0), (1.0, 1.5, 3.0, 7.0), (1.0, 2.0))
ANY_LOGITS = {
    "seed": st.integers(0, 2**16),
    "vocab_size": st.integers(1, 5000),
    "top_k": st.integers(1, 256),
    "temperatures": st.sampled_from(TEMPERATURES),
    "dtype": st.sampled_from(DTYPES),
    "spread": st.sampled_from((0.5, 3.0, 30.0)),
    "share_removed": st.sampled_from((0.0, 0.5, 0.97)),
}
"""What a property is tried on."""


def removed(logits_NV, share, generator, finite_id):
    """Logits of which a share is -inf, never the one of `finite_id`, so that every row has a distribution."""
    removed_NV = torch.rand(logits_NV.shape, generator=generator) < share
    logits_NV = logits_NV.masked_fill(removed_NV, -torch.inf)
    logits_NV[:, finite_id] = 1.0
    return logits_NV


def assert_same(logits_NV, label_ids_N, layout):
    """Ids and values bit for bit (ties by id), ranks exact, masses within 1e-4 nats of float64."""
    rows = capture_kernel.reduce_logits(logits_NV, label_ids_N, layout)
    top_k, exact_NV = layout.top_k, logits_NV.float().numpy()
    order_NK = np.argsort(-exact_NV, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(rows.token_ids_NC[:, 1 : top_k + 1].numpy(), order_NK)
    np.testing.assert_array_equal(
        rows.values_NC[:, 1 : top_k + 1].numpy(), np.take_along_axis(exact_NV, order_NK, axis=1)
    )
    reference = columns_from_logits(exact_NV, label_ids_N.numpy(), layout)
    np.testing.assert_array_equal(rows.ranks_N.numpy(), reference.ranks_N)
    np.testing.assert_array_equal(rows.values_NC[:, 0].numpy(), reference.values_NC[:, 0])
    masses, wanted = rows.values_NC[:, top_k + 1 : -1].numpy(), reference.values_NC[:, top_k + 1 : -1]
    np.testing.assert_allclose(masses, wanted, rtol=1e-6, atol=1e-4)
    torch_rows = reduction.reduce_logits(logits_NV, label_ids_N, layout)
    torch.testing.assert_close(
        rows.values_NC[:, : top_k + 1], torch_rows.values_NC[:, : top_k + 1], rtol=0, atol=0
    )
    torch.testing.assert_close(rows.ranks_N, torch_rows.ranks_N)


@settings(max_examples=60)
@given(
    **ANY_LOGITS,
    tied=st.booleans(),
)
def test_kernel_agrees_with_the_reference(
    seed, vocab_size, top_k, temperatures, dtype, spread, tied, share_removed
):
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn((3, vocab_size), generator=generator) * spread
    if tied:
        logits_NV = logits_NV.round()
    logits_NV = removed(logits_NV, share_removed, generator, seed % vocab_size)
    label_ids_N = torch.randint(0, vocab_size, (3,), generator=generator)
    assert_same(logits_NV.to(dtype), label_ids_N, ColumnLayout(min(top_k, vocab_size), temperatures))


def assert_same_at_ids(logits_NV, label_ids_N, given_NK, layout):
    """As the Torch code: ids, logits and ranks bit for bit, masses within 1e-4 nats."""
    rows = capture_kernel.reduce_at_ids(logits_NV, label_ids_N, given_NK, layout)
    expected = given_capture.reduce_at_ids(logits_NV, label_ids_N, given_NK, layout)
    torch.testing.assert_close(rows.token_ids_NC, expected.token_ids_NC, rtol=0, atol=0)
    torch.testing.assert_close(rows.ranks_N, expected.ranks_N, rtol=0, atol=0)
    entries, masses = slice(0, layout.top_k + 1), slice(layout.top_k + 1, -1)
    torch.testing.assert_close(
        rows.values_NC[:, entries], expected.values_NC[:, entries], rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(
        rows.values_NC[:, masses], expected.values_NC[:, masses], rtol=1e-6, atol=1e-4, equal_nan=True
    )
    return rows


@settings(max_examples=40)
@given(
    **ANY_LOGITS,
    near=st.booleans(),
    repeated=st.booleans(),
    share_without=st.sampled_from((0.0, 0.3, 1.0)),
)
def test_rows_at_given_ids_agree_with_the_reference(
    seed, vocab_size, top_k, temperatures, dtype, spread, near, repeated, share_without, share_removed
):
    """Ids side by side or anywhere, also twice in a row, none in places, of logits that may be -inf."""
    generator = torch.Generator().manual_seed(seed)
    layout = ColumnLayout(min(top_k, vocab_size), temperatures)
    logits_NV = torch.randn((4, vocab_size), generator=generator) * spread
    logits_NV = removed(logits_NV, share_removed, generator, seed % vocab_size)
    given_NK = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(4)])
    given_NK = (given_NK.sort(dim=1).values if near else given_NK)[:, : layout.top_k].clone()
    if repeated:
        given_NK[0, -1] = given_NK[0, 0]
    without_NK = torch.rand(given_NK.shape, generator=generator) < share_without
    given_NK[1:][without_NK[1:]] = -1
    label_ids_N = torch.randint(0, vocab_size, (4,), generator=generator)
    rows = assert_same_at_ids(logits_NV.to(dtype), label_ids_N, given_NK.to(torch.int32), layout)
    if not repeated:
        exact_NV = logits_NV.to(dtype).float().numpy()
        whole_N = np.logaddexp.reduce(exact_NV[:1].astype(np.float64), axis=1)
        assert rows.values_NC[0, layout.top_k + 1].item() == pytest.approx(whole_N[0], abs=1e-4, rel=1e-6)


def test_given_ids_in_blocks_of_rows_and_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr(capture_kernel, "rows_per_block", lambda vocab_size, layout: 2)
    generator = torch.Generator().manual_seed(4)
    for vocab_size in (300, 2**18):
        logits_NV = torch.randn((5, vocab_size), generator=generator)
        given_NK = torch.randint(0, vocab_size, (5, 64), generator=generator)
        assert_same_at_ids(logits_NV, torch.arange(5), given_NK, ColumnLayout(64, (1.0, 2.0, 4.0)))


@pytest.mark.parametrize("place", [0, 70, 299])
def test_nan_reaches_the_row_at_given_ids(place):
    logits_NV = torch.randn((1, 300), generator=torch.Generator().manual_seed(3))
    logits_NV[0, place] = torch.nan
    rows = capture_kernel.reduce_at_ids(
        logits_NV, torch.tensor([1]), torch.tensor([[70, 71]]), ColumnLayout(2, (1.0,))
    )
    assert not torch.isfinite(rows.values_NC[0, 1:4]).all()


def test_all_logits_equal():
    assert_same(torch.zeros((2, 1000)), torch.tensor([0, 999]), ColumnLayout(64, (1.0, 2.0, 4.0)))


def test_largest_vocabulary():
    logits_NV = torch.randn((1, 2**20), generator=torch.Generator().manual_seed(1))
    assert_same(logits_NV, torch.tensor([2**20 - 1]), ColumnLayout(256, (1.0, 2.0, 4.0)))


def test_far_tail_does_not_vanish():
    """The stored entry stands 300 nats above the rest, whose mass float32 could not hold beside it."""
    logits_NV = torch.full((1, 500), -300.0)
    logits_NV[0, 7] = 0.0
    rows = capture_kernel.reduce_logits(logits_NV, torch.tensor([7]), ColumnLayout(1, (1.0,)))
    assert rows.values_NC[0, 3].item() == pytest.approx(np.log(499) - 300, abs=1e-4)


def test_blocks_of_rows_and_strided_rows(monkeypatch):
    monkeypatch.setattr(capture_kernel, "rows_per_block", lambda vocab_size, layout: 2)
    wide = torch.randn((5, 400), generator=torch.Generator().manual_seed(2))
    assert_same(wide[:, :300], torch.arange(5), ColumnLayout(8, (1.0, 2.0)))
    assert_same(wide.t()[:200], torch.tensor([0, 1, 2, 3, 4] * 40), ColumnLayout(3, (1.0,)))


@pytest.mark.parametrize("place", [0, 70, 299])
def test_nan_reaches_the_row(place):
    """A damaged row must be refused later, so it may not come out whole."""
    logits_NV = torch.randn((1, 300), generator=torch.Generator().manual_seed(3))
    logits_NV[0, place] = torch.nan
    rows = capture_kernel.reduce_logits(logits_NV, torch.tensor([1]), ColumnLayout(2, (1.0,)))
    assert not torch.isfinite(rows.values_NC[0, 1:4]).all()


def test_scratch_memory_is_bounded():
    layout = ColumnLayout(256, (1.0, 2.0, 4.0))
    assert 1 <= capture_kernel.rows_per_block(2**20, layout) < 512
    step_rows = 2048  # of the engine's steps: one block, as each block costs the host its launches
    assert capture_kernel.rows_per_block(151_936, ColumnLayout(64, (1.0, 2.0, 4.0))) >= step_rows


def test_masses_do_not_depend_on_the_default_dtype():
    """A model's own code may set it; 1 / 3 in bf16 would be 0.2 per cent off."""
    logits_NV = torch.randn((2, 500), generator=torch.Generator().manual_seed(5)) * 30
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert_same(logits_NV.float(), torch.tensor([1, 2]), ColumnLayout(4, (1.0, 3.5)))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_cpu_takes_the_torch_code():
    layout = ColumnLayout(8, (1.0,))
    form = reduction.LogitsForm(torch.device("cpu"), 1000, torch.bfloat16)
    assert reduction.choose_reduction(form, layout).note == "torch"
    assert given_capture.choose_at_ids(form, layout) == (given_capture.reduce_at_ids, "torch")


@pytest.mark.parametrize("vocab_size", [256, 7919, 50_257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trial_before_the_first_step_finds_a_kernel_that_is_wrong(vocab_size, dtype):
    """On the logits that the engine will hand over: dtype, width and stride decide what Triton compiles."""
    layout, label_ids_N = ColumnLayout(64, (1.0, 2.0, 4.0)), torch.arange(4)
    form = reduction.LogitsForm(torch.device("cpu"), vocab_size, dtype)
    seen = []

    def by_kernel(logits_NV):
        seen.append((logits_NV.dtype, *logits_NV.shape[1:], logits_NV.stride(0)))
        return capture_kernel.reduce_logits(logits_NV, label_ids_N, layout)

    def by_torch(logits_NV):
        return reduction.reduce_logits(logits_NV, label_ids_N, layout)

    assert reduction.kernel_fault(form, by_kernel, by_torch) is None
    padded = {256: 256, 7919: 7936, 50_257: 50_304}[vocab_size]  # of a head's rows, cut to the vocabulary
    strides = dict.fromkeys((vocab_size, padded))
    dtypes = dict.fromkeys((torch.float32, dtype))
    assert seen == [(one, vocab_size, stride) for one in dtypes for stride in strides]

    def shifted(logits_NV):
        return by_kernel(logits_NV if logits_NV.dtype != dtype else logits_NV.roll(1, dims=1))

    def failing(logits_NV):
        raise RuntimeError("Failed to find C compiler.")

    assert reduction.kernel_fault(form, shifted, by_torch) == "disagree with it"
    assert (
        reduction.kernel_fault(form, failing, by_torch) == "fail: RuntimeError('Failed to find C compiler.')"
    )
