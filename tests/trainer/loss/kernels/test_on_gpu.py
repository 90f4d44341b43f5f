"""The losses on a GPU: against float64, with and without Triton, compiled, under autocast and checkpointed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.trainer.loss.float16_tail import assert_float16_keeps_the_tail
from tests.trainer.loss.reference_loss import Case, make_case
from trainer.loss.chunk_plan import add_product
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.kernel_losses import takes_kernels
from trainer.loss.loss_inputs import LossOutput
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
]
HIDDEN = 64
KINDS = [
    {},
    {"beta": 1.0},
    {"beta": 0.3},
    {"tail": "renormalize"},
    {"tail": "uniform"},
    {"divergence": "total_variation"},
]


def on_gpu(case: Case) -> Case:
    return replace(case, labels=case.labels.cuda(), targets=case.targets.to("cuda"))


def leaves(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch, tokens, vocab_size = case.student_logits.shape
    hidden = torch.randn(batch, tokens, HIDDEN, generator=generator)
    weight = torch.randn(vocab_size, HIDDEN, generator=generator) * HIDDEN**-0.5
    return hidden.to("cuda", dtype).requires_grad_(), weight.to("cuda", dtype).requires_grad_()


def exact(
    hidden: Tensor, weight: Tensor, case: Case, settings: LossSettings
) -> tuple[LossOutput, tuple[Tensor, ...]]:
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    output = topk_distillation_loss(wide[0] @ wide[1].t(), case.labels, case.targets, settings)
    return output, torch.autograd.grad(output.loss, wide)


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def test_the_kernels_are_taken():
    assert takes_kernels("auto", torch.device("cuda", 0), torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64(kind, kernel, dtype):
    for temperature in (1.0, 2.0):
        settings = LossSettings(temperature=temperature, **kind)
        case = on_gpu(
            make_case(1, batch=4, tokens=65, vocab_size=9001, top_k=16, temperature=temperature, ragged=True)
        )
        hidden, weight = leaves(case, dtype)
        expected, exact_gradients = exact(hidden, weight, case, settings)
        for chunk_rows in (50, None):
            output = fused_linear_topk_distillation_loss(
                hidden, weight, case.labels, case.targets, settings, chunk_rows=chunk_rows, kernel=kernel
            )
            assert output.loss.item() == pytest.approx(
                expected.loss.item(), rel=1e-5 if dtype == torch.float32 else 5e-3
            )
            found = torch.autograd.grad(output.loss, (hidden, weight))
            for ours, theirs in zip(found, exact_gradients, strict=True):
                assert distance(ours, theirs) < (1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_float16_keeps_the_gradients_of_the_tail(kernel):
    assert_float16_keeps_the_tail(kernel, device="cuda")


def test_the_weights_gradient_adds_up_in_float32():
    """Without a temporary of its size, 64 MiB in bf16: many small products onto a large sum."""
    generator = torch.Generator("cuda").manual_seed(0)
    grad_NV = torch.randn(64, 32_768, device="cuda", generator=generator).bfloat16()
    hidden_NH = torch.randn(64, 1024, device="cuda", generator=generator).bfloat16()
    sum_VH = torch.full((32_768, 1024), 1000.0, device="cuda")
    add_product(sum_VH, grad_NV, hidden_NH)  # tries once whether the device can
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_allocated()
    add_product(sum_VH, grad_NV, hidden_NH)
    # cuBLAS may take 32 MiB to work in.
    assert torch.cuda.max_memory_allocated() - before_bytes < 48 * 2**20
    expected = 1000 + 2 * (grad_NV.double().t() @ hidden_NH.double())
    assert (sum_VH.double() - expected).abs().max().item() < 2e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_a_head_on_another_device_than_the_current_one():
    """As `device_map` places it: kernels must be launched where the logits are."""
    case = on_gpu(make_case(1, batch=2, tokens=33, vocab_size=3000, top_k=8))
    hidden, weight = leaves(case, torch.float32)
    found = []
    for device in ("cuda:0", "cuda:1"):
        hidden, weight = (leaf.detach().to(device).requires_grad_() for leaf in (hidden, weight))
        output = fused_linear_topk_distillation_loss(
            hidden, weight, case.labels.to(device), case.targets.to(device), LossSettings(), kernel="triton"
        )
        found.append([output.loss, *torch.autograd.grad(output.loss, (hidden, weight))])
    for near, far in zip(*found, strict=True):
        torch.testing.assert_close(far.to(near.device), near)


@pytest.mark.parametrize("way", ["autocast", "checkpointed", "compiled"])
def test_a_training_step(way):
    """One step of a small network and its head in fp32 weights, against the same in float64."""
    case = on_gpu(make_case(3, batch=2, tokens=33, vocab_size=3000, top_k=8))
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh()).cuda()
    inputs, weight = leaves(case, torch.float32)

    def step(inputs: Tensor, weight: Tensor) -> Tensor:
        hidden = checkpoint(body, inputs, use_reentrant=False) if way == "checkpointed" else body(inputs)
        assert isinstance(hidden, Tensor)
        return fused_linear_topk_distillation_loss(
            hidden, weight, case.labels, case.targets, LossSettings()
        ).loss

    run = torch.compile(step) if way == "compiled" else step
    with torch.autocast("cuda", torch.bfloat16, enabled=way == "autocast"):
        loss = run(inputs, weight)
    found = torch.autograd.grad(loss, (inputs, weight))
    wide = [tensor.detach().double().requires_grad_() for tensor in (inputs, weight)]
    logits = body.double()(wide[0]) @ wide[1].t()
    exact_loss = topk_distillation_loss(logits, case.labels, case.targets, LossSettings()).loss
    expected = torch.autograd.grad(exact_loss, wide)
    assert loss.item() == pytest.approx(exact_loss.item(), rel=5e-3)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) < (2e-2 if way == "autocast" else 1e-3)
