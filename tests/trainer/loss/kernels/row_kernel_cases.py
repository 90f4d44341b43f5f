"""Run by `test_row_kernels.py` in a process of its own, where Triton interprets its kernels on the CPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.loss.float16_tail import assert_float16_keeps_the_tail
from tests.trainer.loss.reference_loss import KINDS, make_targets
from trainer.loss.divergences import weighted_sum
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.kernel_losses import HeadOptions, losses_in_place
from trainer.loss.loss_inputs import LossRows, TeacherTargets, select_rows
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
"""What one rounding of a gradient may cost; the interpreter cuts bfloat16 off where a GPU rounds."""


@dataclass(frozen=True)
class Batch:
    """A batch whose rows keep 0 to K entries, with junk ids on padding and labels that do not count."""

    logits: Tensor
    labels: Tensor
    targets: TeacherTargets


def make_batch(seed: int, vocab_size: int, top_k: int, temperature: float, size: float) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = 3 * torch.randn(2, 2, 5, vocab_size, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, top_k + 1, (2, 5), generator=generator)
    counts[0, 1] = top_k
    targets = make_targets(teacher, temperature, counts, top_k)
    junk = torch.randint(0, vocab_size, targets.token_ids_BTK.shape, generator=generator)
    targets = replace(targets, token_ids_BTK=torch.where(targets.mask_BTK, targets.token_ids_BTK, junk))
    labels = torch.randint(0, vocab_size, (2, 5), generator=generator)
    labels[0, 2] = labels[1, 0] = -100
    labels[1, 1] = targets.token_ids_BTK[1, 1, 0]  # often a label that is stored
    return Batch(student * size, labels, targets)


def exact_gradient(
    product_NV: Tensor, rows: LossRows, loss_settings: LossSettings, bias_V: Tensor | None, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of the rows and its derivative by the product, by autograd in float64."""
    leaf_NV = product_NV.double().requires_grad_()
    logits_NV = leaf_NV if bias_V is None else leaf_NV + bias_V.double()
    if cap is not None:
        logits_NV = cap * torch.tanh(logits_NV / cap)
    # Each row as a sequence of its own, whose first label does not count.
    labels_N2 = torch.stack([torch.full_like(rows.labels_N, -100), rows.labels_N], 1)
    targets = TeacherTargets(
        token_ids_BTK=rows.token_ids_NK.unsqueeze(1).expand(-1, 2, -1),
        logprobs_BTK=rows.logprobs_NK.unsqueeze(1).expand(-1, 2, -1),
        tail_logprob_BT=rows.tail_logprob_N.unsqueeze(1).expand(-1, 2),
        mask_BTK=rows.mask_NK.unsqueeze(1).expand(-1, 2, -1),
    )
    output = topk_distillation_loss(
        logits_NV.unsqueeze(1).expand(-1, 2, -1), labels_N2, targets, loss_settings, num_items_in_batch=1
    )
    return output.loss.detach(), torch.autograd.grad(output.loss, leaf_NV)[0]


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    vocab_size=st.sampled_from([7, 64, 1000, 4096, 4100]),
    top_k=st.sampled_from([1, 4, 7]),
    temperature=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from(list(ROUNDING)),
    head=st.sampled_from([(False, None), (True, None), (False, 5.0), (True, 5.0)]),
    size=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_gradient_is_exact_to_one_rounding(
    kind, seed, vocab_size, top_k, temperature, alpha, dtype, head, size
):
    loss_settings = LossSettings(temperature=temperature, alpha=alpha, **kind)
    batch = make_batch(seed, vocab_size, top_k, temperature, size)
    rows = select_rows(batch.labels, batch.targets, loss_settings, vocab_size)
    product_NV = batch.logits.flatten(0, 1)[rows.position_N].to(dtype)
    bias_V = torch.linspace(-1, 1, vocab_size) if head[0] else None
    exact_loss, exact_NV = exact_gradient(product_NV, rows, loss_settings, bias_V, head[1])
    buffer_NV, unchanged_NV = product_NV.clone(), product_NV.clone()
    options = HeadOptions(bias_V, head[1])
    losses = losses_in_place(buffer_NV, rows, loss_settings, options, needs_gradient=True)
    evaluated = losses_in_place(unchanged_NV, rows, loss_settings, options, needs_gradient=False)
    total = weighted_sum(losses.rows, loss_settings).item()
    # The squared temperature multiplies what float32 rounds.
    assert total == pytest.approx(exact_loss.item(), rel=2e-5, abs=2e-5 * temperature**2)
    assert weighted_sum(evaluated.rows, loss_settings).item() == total
    scale = exact_NV.abs().amax().clamp(min=1.0)
    allowed_NV = ROUNDING[dtype] * exact_NV.abs() * 1.01 + 1e-5 * scale
    if dtype == torch.float16:
        assert buffer_NV.isfinite().all()
        allowed_NV += 2.0**-24 / losses.scale  # its smallest number
    else:
        assert losses.scale == 1
    assert ((buffer_NV.double() / losses.scale - exact_NV).abs() <= allowed_NV).all()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([1.0, 2.0]),
    chunk_rows=st.sampled_from([1, 3, 100]),
    with_bias=st.booleans(),
    softcap=st.sampled_from([None, 4.0]),
)
def test_the_whole_loss_is_that_of_torch(kind, seed, temperature, chunk_rows, with_bias, softcap):
    """Values, metrics and every gradient in float32, on a head wider than the vocabulary."""
    loss_settings = LossSettings(temperature=temperature, alpha=0.6, vocab_size=50, **kind)
    batch = make_batch(seed, 50, 5, temperature, 1.0)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 5, 6, generator=generator).requires_grad_()
    weight = torch.randn(53, 6, generator=generator).requires_grad_()
    bias = torch.randn(53, generator=generator).requires_grad_() if with_bias else None
    made = []
    for kernel in ("torch", "triton"):
        output = fused_linear_topk_distillation_loss(
            hidden,
            weight,
            batch.labels,
            batch.targets,
            loss_settings,
            bias_V=bias,
            logit_scale=0.7,
            logit_softcap=softcap,
            chunk_rows=chunk_rows,
            kernel=kernel,
        )
        wanted = [hidden, weight] if bias is None else [hidden, weight, bias]
        values = [getattr(output, name) for name in ("loss", "distillation", "cross_entropy")]
        metrics = [getattr(output.metrics, field.name) for field in dataclasses.fields(output.metrics)]
        made.append((values, metrics, torch.autograd.grad(output.loss, wanted)))
    for place, (found, expected) in enumerate(zip(made[1], made[0], strict=True)):
        is_metrics = place == 1  # without a tail the teacher's mass is NaN
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6, equal_nan=is_metrics)


def test_bfloat16_weights_without_a_teacher():
    """Cross-entropy alone: rows without stored entries, products in bf16."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 40, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(300, 16, generator=generator).bfloat16().requires_grad_()
    labels = torch.randint(0, 300, (1, 40), generator=generator)
    output = fused_linear_topk_distillation_loss(
        hidden, weight, labels, None, LossSettings(alpha=0.0), chunk_rows=7, kernel="triton"
    )
    logits = (hidden[0, :-1] @ weight.t()).float().detach().requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, labels[0, 1:])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    exact = torch.autograd.grad(expected, logits)[0].t() @ hidden[0, :-1].float()
    found = torch.autograd.grad(output.loss, weight)[0]
    assert found.dtype == torch.bfloat16
    assert ((found.float() - exact).norm() / exact.norm()).item() < 0.004


def test_a_confident_student_keeps_the_digits_of_its_tail_and_label():
    """In bf16, q - 1 of a label with q = 0.9995 would be 0 if q were rounded before 1 is taken off."""
    logits_NV = torch.zeros(1, 5000, dtype=torch.bfloat16)
    logits_NV[0, 3] = 16.0
    none_NK = torch.empty(1, 0)
    rows = LossRows(
        torch.zeros(1, dtype=torch.long),
        torch.tensor([3]),
        none_NK.long(),
        none_NK,
        torch.zeros(1),
        none_NK.bool(),
    )
    exact = torch.softmax(logits_NV.double(), 1)[0, 3].item() - 1
    losses_in_place(logits_NV, rows, LossSettings(alpha=0.0), HeadOptions(), needs_gradient=True)
    assert logits_NV[0, 3].item() == pytest.approx(exact, rel=0.004)


def test_logits_that_are_not_numbers_reach_the_loss():
    batch = make_batch(1, 64, 4, 1.0, 1.0)
    rows = select_rows(batch.labels, batch.targets, LossSettings(), 64)
    logits_NV = batch.logits.flatten(0, 1)[rows.position_N].float()
    logits_NV[0, 9] = torch.nan
    losses = losses_in_place(logits_NV, rows, LossSettings(), HeadOptions(), needs_gradient=False)
    assert losses.rows.cross_entropy_N[0].isnan()
    assert losses.rows.cross_entropy_N[1:].isfinite().all()


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_float16_keeps_the_gradients_of_the_tail(softcap):
    assert_float16_keeps_the_tail("triton", softcap)


def test_dtypes_that_the_kernels_do_not_know_are_refused():
    hidden, weight = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="float32, bfloat16 and float16, not torch"):
        fused_linear_topk_distillation_loss(
            hidden,
            weight,
            torch.zeros(1, 3, dtype=torch.long),
            None,
            LossSettings(alpha=0.0),
            kernel="triton",
        )
