"""The arithmetic that runs inside vLLM's worker, against numpy in float64. No engine here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from labeler.teacher.known_vllm import capture_refusal  # noqa: E402
from labeler.teacher.label_rows import (  # noqa: E402
    CapturedColumns,
    ColumnLayout,
    columns_from_logits,
    rows_from_columns,
)
from labeler.teacher.vllm.capture import installing as vllm_capture  # noqa: E402
from labeler.teacher.vllm.capture import reduction  # noqa: E402

VOCAB = 20_011
"""Not a multiple of the chunk, and large enough for the two-level top-K."""


def _logits(num_rows: int, vocab_size: int = VOCAB, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Heavy upper tail, as trained heads have.
    return (rng.standard_normal((num_rows, vocab_size)) * 3 + rng.gumbel(size=(num_rows, vocab_size))).astype(
        np.float32
    )


def _reduce(logits_NV: Any, label_ids_N: np.ndarray, layout: ColumnLayout) -> CapturedColumns:
    rows = reduction.reduce_logits(torch.as_tensor(logits_NV), torch.as_tensor(label_ids_N), layout)
    return CapturedColumns(rows.token_ids_NC.numpy(), rows.values_NC.numpy(), rows.ranks_N.numpy())


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0, 4.0), (1.0, 1.5, 3.0, 6.5), (1.0, 4.0)])
@pytest.mark.parametrize("top_k", [1, 64])
def test_columns_equal_the_reference(temperatures: tuple[float, ...], top_k: int) -> None:
    layout = ColumnLayout(top_k, temperatures)
    # 19 rows: two whole blocks and a part of one.
    logits_NV = _logits(19)
    label_ids_N = np.argsort(-logits_NV, axis=1)[np.arange(19), np.arange(19) * 40]
    ours, reference = (
        _reduce(logits_NV, label_ids_N, layout),
        columns_from_logits(logits_NV, label_ids_N, layout),
    )
    np.testing.assert_array_equal(ours.token_ids_NC, reference.token_ids_NC)
    np.testing.assert_array_equal(ours.ranks_N, reference.ranks_N)
    np.testing.assert_array_equal(ours.values_NC[:, : top_k + 1], reference.values_NC[:, : top_k + 1])
    np.testing.assert_allclose(
        ours.values_NC[:, top_k + 1 : -1], reference.values_NC[:, top_k + 1 : -1], atol=4e-6
    )
    rows_from_columns(ours, layout, VOCAB)


def test_bf16_logits_stay_exact() -> None:
    layout = ColumnLayout(32, (1.0, 2.0, 4.0))
    logits_NV = torch.as_tensor(_logits(9)).to(torch.bfloat16)
    label_ids_N = np.arange(9)
    ours = _reduce(logits_NV, label_ids_N, layout)
    reference = columns_from_logits(logits_NV.float().numpy(), label_ids_N, layout)
    # Ties are common in bf16, so ids may differ where values do not.
    np.testing.assert_array_equal(ours.values_NC[:, :33], reference.values_NC[:, :33])
    np.testing.assert_allclose(ours.values_NC[:, 33:36], reference.values_NC[:, 33:36], atol=4e-6)
    stored_NK = np.take_along_axis(logits_NV.float().numpy(), ours.token_ids_NC[:, 1:33].astype(np.int64), 1)
    np.testing.assert_array_equal(stored_NK, ours.values_NC[:, 1:33])
    assert all(len(set(row)) == 32 for row in ours.token_ids_NC[:, 1:33].tolist())


def test_ranks_count_ties_with_the_label() -> None:
    layout = ColumnLayout(4, (1.0,))
    logits_NV = np.zeros((3, 2048), np.float32)
    logits_NV[1, :4] = [4, 3, 2, 1]
    logits_NV[2, 5:10] = 7
    ours = _reduce(logits_NV, np.array([9, 3, 9]), layout)
    assert ours.ranks_N.tolist() == [2048, 4, 5]


def test_a_tail_below_float32_is_exact() -> None:
    layout = ColumnLayout(2, (1.0, 2.0, 4.0))
    logits_NV = np.full((1, 4096), -60.0, np.float32)
    logits_NV[0, [10, 3000]] = [200.0, 0.0]
    ours = _reduce(logits_NV, np.array([10]), layout)
    for index, temperature in enumerate(layout.temperatures):
        expected = np.log(4094) - 260 / temperature
        assert ours.values_NC[0, 6 + index] == pytest.approx(expected, abs=1e-4)


def test_everything_stored_leaves_no_tail() -> None:
    layout = ColumnLayout(50, (1.0, 2.0))
    logits_NV = _logits(3, 50)
    ours = _reduce(logits_NV, np.array([0, 1, 2]), layout)
    assert np.isneginf(ours.values_NC[:, 53:55]).all()
    np.testing.assert_allclose(ours.values_NC[:, 51], np.logaddexp.reduce(logits_NV, axis=1), atol=4e-6)


def test_ids_masked_out_by_the_model_have_no_mass() -> None:
    layout = ColumnLayout(8, (1.0, 2.0, 4.0))
    logits_NV = np.full((2, 4096), -np.inf, np.float32)
    logits_NV[:, [1, 5, 9]] = [3.0, 2.0, 1.0]
    rows = rows_from_columns(_reduce(logits_NV, np.array([1, 5]), layout), layout, 4096)
    assert rows.count_N.tolist() == [3, 3]
    assert np.isneginf(rows.log_tail_mass_NM).all()
    np.testing.assert_allclose(rows.logsumexp_NM[:, 0], np.logaddexp.reduce([3.0, 2.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("vocab_size", [4096, 4097, 4159, 20_011])
def test_two_level_top_k_is_top_k(vocab_size: int) -> None:
    logits = torch.as_tensor(_logits(5, vocab_size, seed=vocab_size))
    # The best entries side by side in one chunk, and in the columns after the last whole one.
    logits[0, 64:80] += 100
    logits[1, -7:] += 100
    values, ids = reduction.top_entries(logits, 16)
    expected_values, expected_ids = torch.topk(logits, 16)
    assert torch.equal(values, expected_values)
    assert torch.equal(ids, expected_ids)


def test_other_requests_go_to_vllms_own_function() -> None:
    class Sampler:
        @staticmethod
        def gather_logprobs(logprobs: Any, num_logprobs: int, token_ids: Any) -> str:
            return f"vllm's {num_logprobs}"

    sampler, layout = Sampler(), ColumnLayout(8, (1.0,))
    vllm_capture.install_v1(sampler, layout)
    assert sampler.gather_logprobs(None, 3, None) == "vllm's 3"
    wrapped = vllm_capture.wrap_v2(lambda *args: args, layout)  # type: ignore[arg-type, return-value]
    assert wrapped(1, layout.num_logprobs, 2, None, None, None, 5, True)[6] == 5  # type: ignore[arg-type, index]
    assert wrapped(1, layout.num_logprobs, 2, None, None, None, 0, False)[7] is False  # type: ignore[arg-type, index]


def test_an_unknown_vllm_is_refused_by_name() -> None:
    reason = capture_refusal("9.9.9", "v1")
    assert reason is not None
    assert "9.9.9" in reason
    assert "0.32.0" in reason


@pytest.mark.parametrize("sizes", [(1024, 1024, 52), (1, 2099), (700, 700, 700)])
def test_rows_do_not_depend_on_how_v2_splits_them(sizes: tuple[int, ...]) -> None:
    """Chunked prompts, several requests and the 1,024-row chunks of prompt logprobs: only the calls differ."""
    layout = ColumnLayout(8, (1.0, 2.0))
    logits, labels = torch.as_tensor(_logits(2100, 200, seed=4)), torch.arange(2100) % 200
    wrapped = vllm_capture.wrap_v2(lambda *args: args, layout)  # type: ignore[arg-type, return-value]
    whole = wrapped(logits, layout.num_logprobs, labels, logits_mode=True)
    parts = [
        wrapped(rows, layout.num_logprobs, ids, logits_mode=True)
        for rows, ids in zip(logits.split(sizes), labels.split(sizes), strict=True)
    ]
    assert torch.equal(torch.cat([part.logprob_token_ids for part in parts]), whole.logprob_token_ids)
    assert torch.equal(torch.cat([part.logprobs for part in parts]), whole.logprobs)
    assert torch.equal(torch.cat([part.selected_token_ranks for part in parts]), whole.selected_token_ranks)


@pytest.mark.vllm  # imports it, which takes seconds
def test_rows_of_many_steps_are_kept_in_order_and_their_batches_are_not() -> None:
    from vllm.v1.outputs import LogprobsLists

    from labeler.teacher.vllm.outputs import ArrayLogprobsProcessor, columns_of

    rng = np.random.default_rng(0)
    ids_NC, values_NC = rng.integers(-9, 2**17, (50, 7)), rng.normal(size=(50, 7)).astype(np.float32)
    ranks_N = np.arange(50)
    processor = ArrayLogprobsProcessor(None, None, None, None, None, 6)  # type: ignore[arg-type]
    for begin, end in itertools.pairwise((0, 1, 2, 5, 5, 6, 37, 50)):
        batch = LogprobsLists(
            ids_NC[begin:end].copy(), values_NC[begin:end].copy(), ranks_N[begin:end].copy()
        )
        processor._update_sample_logprobs(batch)
        for array in batch[:3]:
            array[:] = 0  # as by the next message
        captured = columns_of(processor.logprobs, 7)
        np.testing.assert_array_equal(captured.token_ids_NC, ids_NC[:end])
        np.testing.assert_array_equal(captured.values_NC, values_NC[:end])
        np.testing.assert_array_equal(captured.ranks_N, ranks_N[:end])
        held = captured.values_NC if captured.values_NC.base is None else captured.values_NC.base
        assert held.size <= 2 * 7 * max(end, 1)
