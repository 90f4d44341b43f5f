"""The fused loss in narrow numbers: what is added up in float32, and what float16 must not lose."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.loss.float16_tail import assert_float16_keeps_the_tail
from tests.trainer.loss.reference_loss import make_case
from tests.trainer.loss.test_fused_linear import HIDDEN, Head
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss


def test_bfloat16_autocast():
    """Products in bf16, sums in fp32: as close to the exact gradient as bf16 allows; dtypes are the inputs'."""
    case = make_case(9, vocab_size=64, top_k=8)
    exact_head, head = Head(case), Head(case)
    head.hidden, head.weight = (
        tensor.detach().float().requires_grad_() for tensor in (head.hidden, head.weight)
    )
    exact = topk_distillation_loss(
        exact_head.hidden @ exact_head.weight.t(), case.labels, case.targets, LossSettings()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = fused_linear_topk_distillation_loss(
            head.hidden, head.weight, case.labels, case.targets, LossSettings(), chunk_rows=4
        )
    assert fused.loss.dtype == torch.float32
    assert fused.loss.item() == pytest.approx(exact.loss.item(), rel=5e-3)
    expected = torch.autograd.grad(exact.loss, (exact_head.hidden, exact_head.weight))
    found = torch.autograd.grad(fused.loss, (head.hidden, head.weight))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.01


def test_bfloat16_weights_add_up_in_float32():
    """Many chunks of bf16 gradients: a bf16 sum would lose the small ones."""
    case = make_case(11, batch=8, tokens=129, vocab_size=32, dtype=torch.float32)
    head = Head(case, dtype=torch.bfloat16)
    exact_head = Head(case)
    exact_head.hidden, exact_head.weight = (
        tensor.detach().double().requires_grad_() for tensor in (head.hidden, head.weight)
    )
    exact = topk_distillation_loss(
        exact_head.hidden @ exact_head.weight.t(), case.labels, case.targets, LossSettings()
    )
    fused = fused_linear_topk_distillation_loss(
        head.hidden, head.weight, case.labels, case.targets, LossSettings(), chunk_rows=8
    )
    expected = torch.autograd.grad(exact.loss, exact_head.weight)[0]
    found = torch.autograd.grad(fused.loss, head.weight)[0]
    assert found.dtype == torch.bfloat16
    assert ((found.double() - expected).norm() / expected.norm()).item() < 0.006


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_float16_keeps_the_gradients_of_the_tail(temperature, beta):
    assert_float16_keeps_the_tail("torch", None, LossSettings(temperature=temperature, alpha=0.9, beta=beta))


def test_float16_of_a_large_and_of_no_gradient_is_finite():
    """Many rows of one label, weights that make slopes of thousands, and rows that count almost nothing."""
    for weight in (1e4, 1e-30):
        hidden = torch.full((1, 400, HIDDEN), 3.0, dtype=torch.float16).requires_grad_()
        head = torch.ones(9, HIDDEN, dtype=torch.float16).requires_grad_()
        output = fused_linear_topk_distillation_loss(
            hidden,
            head,
            torch.zeros(1, 400, dtype=torch.long),
            None,
            LossSettings(alpha=0.0),
            label_weights_BT=torch.full((1, 400), weight),
        )
        (found,) = torch.autograd.grad(output.loss, head)
        expected = torch.full((9,), 3.0 / 9)
        expected[0] = -3.0 * 8 / 9
        torch.testing.assert_close(found, expected.half().unsqueeze(1).expand(9, HIDDEN))
