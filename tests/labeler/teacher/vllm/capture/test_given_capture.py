"""Rows at given ids: the arithmetic inside vLLM's worker against numpy in float64. No engine here.

Shape legend: N rows, V vocabulary, K ids of a row.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from labeler.records import TokenizedPrompt  # noqa: E402
from labeler.teacher.label_rows import (  # noqa: E402
    CapturedColumns,
    ColumnLayout,
    check_given_ids,
    columns_from_logits,
    rows_from_columns,
)
from labeler.teacher.vllm.capture.given_arguments import given_arguments, given_rows  # noqa: E402
from labeler.teacher.vllm.capture.given_capture import StepIds, reduce_at_ids  # noqa: E402
from logitstore.errors import InvalidLabelsError  # noqa: E402

TEMPERATURES = (1.0, 2.0, 4.0)


def reduced(logits_NV: np.ndarray, given_NK: np.ndarray, layout: ColumnLayout) -> CapturedColumns:
    labels_N = np.arange(len(logits_NV))
    rows = reduce_at_ids(
        torch.as_tensor(logits_NV), torch.as_tensor(labels_N), torch.as_tensor(given_NK), layout
    )
    return CapturedColumns(rows.token_ids_NC.numpy(), rows.values_NC.numpy(), rows.ranks_N.numpy())


def test_rows_are_those_of_whole_distributions_at_the_given_ids() -> None:
    rng = np.random.default_rng(0)
    logits_NV = (3 * rng.standard_normal((19, 5003)) + rng.gumbel(size=(19, 5003))).astype(np.float32)
    given_NK = np.stack([rng.choice(5003, 16, replace=False) for _ in range(19)]).astype(np.int32)
    given_NK[5, 3:] = -1
    given_NK[6, 0] = -1  # id 0 must not be taken out in its place
    logits_NV[6, 0] = 30
    layout = ColumnLayout(16, TEMPERATURES)
    captured = reduced(logits_NV, given_NK, layout)
    reference = columns_from_logits(logits_NV, np.arange(19), layout, given_NK)
    np.testing.assert_array_equal(captured.token_ids_NC, reference.token_ids_NC)
    np.testing.assert_array_equal(captured.ranks_N, reference.ranks_N)
    np.testing.assert_allclose(captured.values_NC[:, :-1], reference.values_NC[:, :-1], atol=1e-5)
    check_given_ids(captured, given_NK)
    rows = rows_from_columns(captured, layout, 5003)
    for row, (ids, logits_V) in enumerate(zip(given_NK, logits_NV.astype(np.float64), strict=True)):
        ids = ids[ids >= 0]  # noqa: PLW2901
        assert rows.count_N[row] == len(ids)
        found = rows.token_ids_NK[row, : len(ids)]
        assert sorted(found.tolist()) == sorted(ids.tolist())
        np.testing.assert_array_equal(rows.logits_NK[row, : len(ids)], logits_NV[row, found])
        for index, temperature in enumerate(TEMPERATURES):
            whole = np.logaddexp.reduce(logits_V / temperature)
            outside = np.logaddexp.reduce(np.delete(logits_V, ids) / temperature)
            assert rows.logsumexp_NM[row, index] == pytest.approx(whole, abs=1e-5)
            assert rows.log_tail_mass_NM[row, index] == pytest.approx(outside - whole, abs=1e-5)


def test_tails_are_exact_where_the_given_ids_have_nearly_nothing_or_nearly_all() -> None:
    logits_NV = np.full((2, 4096), -60.0, np.float32)
    logits_NV[:, [10, 3000]] = [200.0, 0.0]
    given_NK = np.array([[7, 8], [10, 3000]], np.int32)
    captured = reduced(logits_NV, given_NK, ColumnLayout(2, TEMPERATURES))
    for index, temperature in enumerate(TEMPERATURES):
        head = np.log(2) - 260 / temperature
        assert captured.values_NC[0, 6 + index] == pytest.approx(np.log1p(-np.exp(head)), abs=1e-6)
        assert captured.values_NC[0, 3 + index] == pytest.approx(200 / temperature, abs=1e-4)
        assert captured.values_NC[1, 6 + index] == pytest.approx(np.log(4094) - 260 / temperature, abs=1e-4)


def test_everything_given_leaves_no_tail() -> None:
    logits_NV = np.random.default_rng(1).normal(0, 3, (3, 50)).astype(np.float32)
    given_NK = np.tile(np.arange(50, dtype=np.int32), (3, 1))
    captured = reduced(logits_NV, given_NK, ColumnLayout(50, (1.0,)))
    assert np.isneginf(captured.values_NC[:, 52]).all()
    np.testing.assert_allclose(captured.values_NC[:, 51], np.logaddexp.reduce(logits_NV, axis=1), atol=4e-6)


def test_ids_come_to_the_rows_of_their_positions_however_a_prompt_is_cut() -> None:
    ids_NK = np.arange(12, dtype=np.int32).reshape(6, 2)
    prompt = TokenizedPrompt("r", np.arange(4), np.arange(6), 4, given_ids_NK=ids_NK)
    arguments = given_arguments(prompt)
    whole_NK = given_rows(arguments, 0, 9, 2)
    assert (whole_NK[:3] == -1).all(), "the logits before the first label row have no ids"
    np.testing.assert_array_equal(whole_NK[3:], ids_NK)
    for cut in range(10):
        parts = [given_rows(arguments, 0, cut, 2), given_rows(arguments, cut, 9, 2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole_NK)
    assert (given_rows(arguments, 9, 12, 2) == -1).all()
    assert (given_rows(None, 0, 3, 2) == -1).all()


def test_rows_that_were_not_foreseen_are_refused() -> None:
    step = StepIds(2)
    step.expect([np.array([[1, 2]], np.int32)])
    with pytest.raises(RuntimeError, match="2 rows are scored and ids are left for 1"):
        step.reduce(torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64), ColumnLayout(2, (1.0,)))


def test_a_row_at_anothers_ids_is_refused() -> None:
    logits_NV = np.random.default_rng(2).normal(0, 3, (2, 50)).astype(np.float32)
    given_NK = np.array([[1, 2, -1], [3, 4, 5]], np.int32)
    captured = reduced(logits_NV, given_NK, ColumnLayout(3, (1.0,)))
    check_given_ids(captured, given_NK)
    with pytest.raises(InvalidLabelsError, match="2 of 2 label rows are not at the ids that were given"):
        check_given_ids(captured, given_NK[::-1])
