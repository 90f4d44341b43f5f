"""Students of `penumbra bench fidelity`: the same start, the same batches, another loss each.

Shape legend: B windows of a batch, T tokens, V vocabulary, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.students.fidelity_labels import WINDOW_TOKENS, LiveTeacher
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings

BATCH_WINDOWS = 4
PEAK_LEARNING_RATE = 3e-3
NUM_BINS = 15

BatchLoss = Callable[[Any, Tensor], Tensor]
"""(student, windows of the batch) -> mean loss per label."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A student on held-out windows, over the whole vocabulary; at T=1 where nothing else is said."""

    kl: float
    """KL(teacher || student), nats per token."""
    kl_at_t: float
    """The same with both sides at the temperature that the student was trained at."""
    cross_entropy: float
    """-log q of the text, nats per token."""
    agreement: float
    """Share of tokens with the same top id as the teacher."""
    calibration_error: float
    """Expected calibration error of the top id against the text, 15 bins."""


def full_distribution(teacher: LiveTeacher, temperature: float) -> BatchLoss:
    """T^2 KL(teacher || student) over all V ids, written out: nothing of the measured losses is in it."""

    def loss(student: Any, window_B: Tensor) -> Tensor:
        logits = student(teacher.token_ids_WT[window_B]).logits[:, :-1] / temperature
        with torch.no_grad():
            log_p = torch.log_softmax(teacher.logits(window_B)[:, :-1] / temperature, dim=-1)
        log_q = torch.log_softmax(logits, dim=-1)
        kl = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return temperature**2 * kl / log_q[..., 0].numel()

    return loss


def from_store(teacher: LiveTeacher, targets: TeacherTargets | None, settings: LossSettings) -> BatchLoss:
    """The fused loss on stored targets; `targets` has a row per window. None with alpha=0 is text only."""

    def loss(student: Any, window_B: Tensor) -> Tensor:
        labels_BT = teacher.token_ids_WT[window_B]
        hidden_BTH = student.model(labels_BT, use_cache=False).last_hidden_state
        batch = None
        if targets is not None:
            batch = TeacherTargets(
                targets.token_ids_BTK[window_B],
                targets.logprobs_BTK[window_B],
                targets.tail_logprob_BT[window_B],
                targets.mask_BTK[window_B],
            )
        return fused_linear_topk_distillation_loss(
            hidden_BTH, student.lm_head.weight, labels_BT, batch, settings
        ).loss

    return loss


@dataclass(frozen=True, slots=True)
class Training:
    """What the students of one seed have in common."""

    seed: int
    """Decides the random weights and the batches."""
    num_steps: int
    peak_learning_rate: float = PEAK_LEARNING_RATE


def random_student(vocab_size: int, seed: int) -> Any:
    """A small Llama of random weights, which the seed alone decides."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW_TOKENS,
            tie_word_embeddings=False,
        )
    )


def train(student: Any, loss: BatchLoss, train_windows: Tensor, training: Training) -> Any:
    """The student itself, `num_steps` later. Batches depend on the seed alone."""
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=training.peak_learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.peak_learning_rate, total_steps=training.num_steps + 1, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(training.seed)
    for _ in range(training.num_steps):
        choice = torch.randperm(len(train_windows), generator=generator)[:BATCH_WINDOWS]
        optimizer.zero_grad()
        loss(student, train_windows[choice]).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return student.eval()


@torch.no_grad()
def evaluate(teacher: LiveTeacher, student: Any, windows: Tensor, temperature: float) -> Quality:
    """Quality over all rows of the windows."""
    teacher_NV = teacher.logits(windows)[:, :-1].flatten(0, 1)
    student_NV = student(teacher.token_ids_WT[windows]).logits[:, :-1].flatten(0, 1)
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    labels_N = teacher.token_ids_WT[windows][:, 1:].flatten()
    confidence_N, top_N = log_q_NV.exp().max(dim=1)
    return Quality(
        kl=_kl(teacher_NV, student_NV),
        kl_at_t=_kl(teacher_NV / temperature, student_NV / temperature),
        cross_entropy=functional.nll_loss(log_q_NV, labels_N).item(),
        agreement=(top_N == teacher_NV.argmax(dim=1)).double().mean().item(),
        calibration_error=_calibration_error(confidence_N, top_N == labels_N),
    )


def _kl(teacher_NV: Tensor, student_NV: Tensor) -> float:
    """KL(teacher || student), nats per row; both sides logits."""
    log_p_NV, log_q_NV = teacher_NV.log_softmax(dim=-1), student_NV.log_softmax(dim=-1)
    return functional.kl_div(log_q_NV, log_p_NV, reduction="batchmean", log_target=True).item()


def _calibration_error(confidence_N: Tensor, right_N: Tensor) -> float:
    """Sum over bins of |right - confidence| by the bin's share of rows (Guo et al. 2017)."""
    bin_N = (confidence_N * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gap_C = torch.zeros(NUM_BINS, dtype=torch.float64)
    gap_C.index_add_(0, bin_N, right_N.double() - confidence_N.double())
    return (gap_C.abs().sum() / len(confidence_N)).item()
