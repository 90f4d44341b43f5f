"""Engine arrays to label rows: the arithmetic of columns, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from labeler.teacher.label_rows import (
    CapturedColumns,
    ColumnLayout,
    columns_from_logits,
    concatenate,
    fit_in_halves,
    rows_from_columns,
    rows_from_logprobs,
)
from logitstore.codec.values import to_patterns
from logitstore.errors import InvalidLabelsError

LAYOUT = ColumnLayout(8, (1.0, 2.0, 4.0))
V = 100


def _capture(seed: int = 0, num_rows: int = 20, layout: ColumnLayout = LAYOUT, vocab_size: int = V):
    rng = np.random.default_rng(seed)
    logits_NV = (rng.standard_normal((num_rows, vocab_size)) * 4).astype(np.float32)
    label_ids_N = rng.integers(0, vocab_size, num_rows).astype(np.int32)
    return logits_NV, label_ids_N, columns_from_logits(logits_NV, label_ids_N, layout)


def _logsumexp(x_NV: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(x_NV.astype(np.float64), axis=1)


def test_rows_hold_the_distribution_they_were_made_from() -> None:
    logits_NV, label_ids_N, captured = _capture()
    rows = rows_from_columns(captured, LAYOUT, V)
    order_NK = np.argsort(-logits_NV, axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(rows.token_ids_NK, order_NK)
    np.testing.assert_array_equal(rows.logits_NK, np.take_along_axis(logits_NV, order_NK, 1))
    outside = logits_NV.astype(np.float64)
    np.put_along_axis(outside, order_NK, -np.inf, axis=1)
    for index, temperature in enumerate(LAYOUT.temperatures):
        whole_N = _logsumexp(logits_NV / temperature)
        np.testing.assert_allclose(rows.logsumexp_NM[:, index], whole_N, atol=2e-6)
        tail_N = _logsumexp(outside / temperature) - whole_N
        np.testing.assert_allclose(rows.log_tail_mass_NM[:, index], tail_N, atol=2e-6)
    label_N = logits_NV[np.arange(20), label_ids_N]
    np.testing.assert_allclose(rows.label_logprob_N, label_N - _logsumexp(logits_NV), atol=2e-6)
    np.testing.assert_array_equal(rows.label_rank_N, (logits_NV >= label_N[:, None]).sum(1))
    assert (rows.count_N == 8).all()


def test_a_tail_too_small_to_be_a_difference_of_probabilities_is_exact() -> None:
    logits_NV = np.full((1, V), -60.0, np.float32)
    logits_NV[0, :8] = [200, 50, 40, 30, 20, 10, 5, 0]
    rows = rows_from_columns(columns_from_logits(logits_NV, np.array([0]), LAYOUT), LAYOUT, V)
    # 92 ids at -60 against one at 200: exp(-260) is below the smallest float32.
    assert rows.log_tail_mass_NM[0, 0] == pytest.approx(np.log(92) - 260, abs=1e-4)


def test_everything_stored_leaves_no_tail() -> None:
    layout = ColumnLayout(10, (1.0, 2.0))
    _, _, captured = _capture(1, 5, layout, 10)
    rows = rows_from_columns(captured, layout, 10)
    assert np.isneginf(rows.log_tail_mass_NM).all()


def test_forbidden_ids_are_padding_and_not_entries() -> None:
    logits_NV = np.full((2, V), -np.inf, np.float32)
    logits_NV[0, [7, 3, 50]] = [2, 1, 0]
    logits_NV[1] = np.arange(V)
    rows = rows_from_columns(columns_from_logits(logits_NV, np.array([3, 3]), LAYOUT), LAYOUT, V)
    assert rows.count_N.tolist() == [3, 8]
    assert rows.token_ids_NK[0].tolist() == [7, 3, 50, 0, 0, 0, 0, 0]
    assert np.isneginf(rows.logits_NK[0, 3:]).all()
    assert np.isneginf(rows.log_tail_mass_NM[0]).all()


def test_v2_runner_ids_are_64_bit() -> None:
    _, _, captured = _capture()
    wide = dataclasses.replace(captured, token_ids_NC=captured.token_ids_NC.astype(np.int64))
    rows = rows_from_columns(wide, LAYOUT, V)
    assert rows.token_ids_NK.dtype == np.int32
    np.testing.assert_array_equal(rows.token_ids_NK, captured.token_ids_NC[:, 1:9])


def test_parts_join_in_order() -> None:
    _, _, captured = _capture()
    joined = concatenate([captured.slice(0, 7), captured.slice(7, 7), captured.slice(7, 20)])
    np.testing.assert_array_equal(joined.values_NC, captured.values_NC)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (1, 3), (8, 5), (9, 7), (14, 19)])
def test_a_changed_bit_is_found(column: int, row: int) -> None:
    _, _, captured = _capture()
    captured.values_NC.view(np.int32)[row, column] ^= 1
    with pytest.raises(InvalidLabelsError, match=f"1 of 20 label rows differ from their checksum.*row {row}"):
        rows_from_columns(captured, LAYOUT, V)


def test_swapped_columns_are_found() -> None:
    _, _, captured = _capture()
    captured.values_NC[:, [9, 10]] = captured.values_NC[:, [10, 9]]
    with pytest.raises(InvalidLabelsError, match="checksum"):
        rows_from_columns(captured, LAYOUT, V)


def test_rows_without_the_worker_are_refused() -> None:
    logits_NV, label_ids_N, captured = _capture()
    captured.token_ids_NC[:, 9:] = np.arange(7)
    with pytest.raises(InvalidLabelsError, match="without their tail columns"):
        rows_from_columns(captured, LAYOUT, V)
    narrow = columns_from_logits(logits_NV, label_ids_N, ColumnLayout(4, (1.0,)))
    with pytest.raises(InvalidLabelsError, match="did not run"):
        rows_from_columns(narrow, LAYOUT, V)


def test_a_nan_row_is_refused() -> None:
    logits_NV, label_ids_N, _ = _capture()
    logits_NV[4, 17] = np.nan
    with np.errstate(invalid="ignore"):
        captured = columns_from_logits(logits_NV, label_ids_N, LAYOUT)
    with pytest.raises(InvalidLabelsError, match=r"\(first: row 4\)"):
        rows_from_columns(captured, LAYOUT, V)


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    _, _, captured = _capture()
    with pytest.raises(InvalidLabelsError, match="outside the vocabulary"):
        rows_from_columns(captured, LAYOUT, 50)


def test_public_rows_are_exact_at_one_temperature_only() -> None:
    logits_NV, _, captured = _capture()
    lse_N1 = _logsumexp(logits_NV)[:, None]
    public = CapturedColumns(
        captured.token_ids_NC[:, :9],
        (captured.values_NC[:, :9] - lse_N1).astype(np.float32),
        captured.ranks_N,
    )
    rows, exact = rows_from_logprobs(public, 8, V), rows_from_columns(captured, LAYOUT, V)
    assert rows.logsumexp_NM.shape == (20, 1)
    assert not rows.logsumexp_NM.any()
    np.testing.assert_allclose(
        np.exp(rows.log_tail_mass_NM[:, 0]), np.exp(exact.log_tail_mass_NM[:, 0]), atol=1e-6
    )
    np.testing.assert_allclose(rows.label_logprob_N, exact.label_logprob_N, atol=1e-5)


def test_raw_logits_are_not_taken_for_logprobs() -> None:
    _, _, captured = _capture()
    public = CapturedColumns(captured.token_ids_NC[:, :9], captured.values_NC[:, :9], captured.ranks_N)
    with pytest.raises(InvalidLabelsError, match="whole probability"):
        rows_from_logprobs(public, 8, V)


def test_bf16_logits_next_to_0_are_rounded_to_what_a_store_holds() -> None:
    """bf16 has numbers far below fp16's; rows at given ids, and flat ones, have such logits."""
    rng = np.random.default_rng(6)
    wide_NV = (rng.normal(0, 3, (40, 100)) * 10.0 ** -rng.uniform(0, 12, (40, 100))).astype(np.float32)
    logits_NV = (wide_NV.view(np.uint32) & 0xFFFF0000).view(np.float32)  # what bf16 holds
    layout = ColumnLayout(64, (1.0,))
    rows = rows_from_columns(columns_from_logits(logits_NV, np.zeros(40, int), layout), layout, 100)
    is_real_NK = np.ones(rows.logits_NK.shape, bool)
    with pytest.raises(InvalidLabelsError, match="not exact in fp16"):
        to_patterns(rows.logits_NK, is_real_NK, "logit_f16")
    fitting = fit_in_halves(rows)
    to_patterns(fitting.logits_NK, is_real_NK, "logit_f16")
    assert np.abs(fitting.logits_NK - rows.logits_NK).max() <= 2.0**-25
    is_large_NK = np.abs(rows.logits_NK) >= 2.0**-16
    np.testing.assert_array_equal(fitting.logits_NK[is_large_NK], rows.logits_NK[is_large_NK])
    assert (np.diff(fitting.logits_NK, axis=1) <= 0).all()
    large = dataclasses.replace(rows, logits_NK=rows.logits_NK + 20)
    assert fit_in_halves(large) is large
