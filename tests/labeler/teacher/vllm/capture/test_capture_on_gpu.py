"""The capture's two reductions against each other and against float64, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labeler.teacher.label_rows import ColumnLayout, columns_from_logits
from labeler.teacher.vllm.capture import given_capture, reduction

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]
LAYOUT = ColumnLayout(64, (1.0, 2.0, 4.0))


def form(vocab_size: int, dtype: torch.dtype) -> reduction.LogitsForm:
    return reduction.LogitsForm(torch.device("cuda"), vocab_size, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1000, 50_257, 151_936])
def test_the_kernel_is_taken(dtype: torch.dtype, vocab_size: int):
    assert reduction.choose_reduction(form(vocab_size, dtype), LAYOUT).note == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1000, 49_152, 151_936])
def test_both_reductions_against_float64(dtype: torch.dtype, vocab_size: int):
    generator = torch.Generator(device="cuda").manual_seed(5)
    logits_NV = (torch.randn(300, vocab_size, device="cuda", generator=generator) * 3).to(dtype)
    label_ids_N = torch.randint(0, vocab_size, (300,), device="cuda", generator=generator)
    expected = columns_from_logits(logits_NV.float().cpu().numpy(), label_ids_N.cpu().numpy(), LAYOUT)
    chosen = reduction.choose_reduction(form(vocab_size, dtype), LAYOUT)
    for reduce in (chosen.reduce, reduction.reduce_logits):
        rows = reduce(logits_NV, label_ids_N, LAYOUT)
        values_NC, ids_NC = rows.values_NC.cpu().numpy(), rows.token_ids_NC.cpu().numpy()
        np.testing.assert_array_equal(values_NC[:, :65], expected.values_NC[:, :65])
        np.testing.assert_allclose(values_NC[:, 65:-1], expected.values_NC[:, 65:-1], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(rows.ranks_N.cpu().numpy(), expected.ranks_N)
        found_NK = np.take_along_axis(
            logits_NV.float().cpu().numpy(), ids_NC[:, 1:65].astype(np.int64), axis=1
        )
        np.testing.assert_array_equal(found_NK, expected.values_NC[:, 1:65])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_at_given_ids_against_the_torch_code(dtype: torch.dtype):
    reduce, note = given_capture.choose_at_ids(form(151_936, dtype), LAYOUT)
    assert note == "triton"
    generator = torch.Generator(device="cuda").manual_seed(6)
    logits_NV = (torch.randn(300, 151_936, device="cuda", generator=generator) * 3).to(dtype)
    label_ids_N = torch.randint(0, 151_936, (300,), device="cuda", generator=generator)
    given_NK = torch.rand(300, 151_936, device="cuda", generator=generator).topk(64, dim=1).indices
    given_NK[::3, 20:] = -1
    rows = reduce(logits_NV, label_ids_N, given_NK, LAYOUT)
    assert reduction.agrees(rows, given_capture.reduce_at_ids(logits_NV, label_ids_N, given_NK, LAYOUT))
