"""A student that is sure of the stored ids: each gradient of its tail lies below float16's smallest number."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.kernel_losses import Kernel
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

VOCAB, HIDDEN, TOKENS, TOP_K = 5000, 16, 24, 4
LOSS_SCALE = 65536.0
"""With which GradScaler begins."""
BUCKET = LossSettings(alpha=1.0)


def assert_float16_keeps_the_tail(
    kernel: Kernel, softcap: float | None = None, settings: LossSettings = BUCKET, device: str = "cpu"
) -> None:
    """Under autocast with a scaled loss, every gradient is that of float64 but for rounding: of float32
    weights, and of float16 hidden states before a frozen float16 head."""
    hidden, weight, labels, targets = _batch(settings.temperature, device)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = exact[0] @ exact[1].t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    output = topk_distillation_loss(logits, labels, targets, settings)
    exact_hidden, exact_weight = torch.autograd.grad(output.loss * LOSS_SCALE, exact)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.float16):
            return fused_linear_topk_distillation_loss(
                hidden, weight, labels, targets, settings, logit_softcap=softcap, chunk_rows=9, kernel=kernel
            ).loss

    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    of_hidden, of_weight = torch.autograd.grad(loss(*leaves) * LOSS_SCALE, leaves)
    assert of_hidden.dtype == of_weight.dtype == torch.float32
    assert _distance(of_hidden, exact_hidden) < 0.01
    assert _distance(of_weight, exact_weight) < 0.02  # logits of 17 are known to 0.008
    assert _distance(of_weight[TOP_K:], exact_weight[TOP_K:]) < 0.02
    half = hidden.half().requires_grad_()
    (of_half,) = torch.autograd.grad(loss(half, weight.half()) * LOSS_SCALE, half)
    assert of_half.dtype == torch.float16
    assert _distance(of_half, exact_hidden) < 0.01


def _batch(temperature: float, device: str) -> tuple[Tensor, Tensor, Tensor, TeacherTargets]:
    generator = torch.Generator().manual_seed(0)
    hidden = 0.2 * torch.randn(1, TOKENS, HIDDEN, generator=generator)
    weight = 0.05 * torch.randn(VOCAB, HIDDEN, generator=generator)
    hidden[..., 0], weight[:, 0] = 4.0, 0.0
    weight[:TOP_K, 0] = 4.25 * temperature  # 17 nats above the others
    ids = torch.arange(TOP_K).expand(1, TOKENS, TOP_K).contiguous()
    logprobs = torch.randn(1, TOKENS, TOP_K, generator=generator).log_softmax(-1)
    tail = torch.full((1, TOKENS), 1e-3)
    targets = TeacherTargets(ids, logprobs + torch.log1p(-tail).unsqueeze(-1), tail.log(), ids >= 0)
    labels = torch.randint(0, TOP_K, (1, TOKENS), generator=generator).to(device)
    # Numbers that float16 has: what is tested is the gradients.
    return hidden.half().float().to(device), weight.half().float().to(device), labels, targets.to(device)


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()
