"""An independent reference of the losses: numpy, float64, one row at a time, from the definitions.

It builds whole probability vectors and shares neither code nor algebra with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings

KINDS: list[dict[str, Any]] = [
    {},
    {"beta": 1.0},
    {"beta": 0.3},
    {"divergence": "total_variation"},
    {"divergence": "sampled"},
    {"tail": "renormalize"},
    {"tail": "zero", "beta": 0.5},
    {"tail": "uniform"},
]
"""One loss of each kind, as settings."""


def kind_id(kind: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in kind.items()) or "bucket"


@dataclass(frozen=True)
class Case:
    """A random batch: teacher and student logits over the whole vocabulary, labels, and stored targets."""

    student_logits: torch.Tensor
    teacher_logits: torch.Tensor
    labels: torch.Tensor
    targets: TeacherTargets


def make_case(
    seed: int = 0,
    *,
    batch: int = 2,
    tokens: int = 7,
    vocab_size: int = 23,
    top_k: int = 5,
    temperature: float = 1.0,
    ragged: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A batch with some labels ignored. `ragged` rows keep between 1 and `top_k` entries, padded with id 0."""
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(batch, tokens, vocab_size, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(batch, tokens, vocab_size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocab_size, (batch, tokens), generator=generator)
    labels[0, 2:4] = -100
    counts = torch.full((batch, tokens), top_k)
    if ragged:
        counts = torch.randint(1, top_k + 1, (batch, tokens), generator=generator)
    targets = make_targets(teacher, temperature, counts, top_k)
    return Case(student.to(dtype), teacher, labels, targets)


def make_targets(
    teacher_logits: torch.Tensor, temperature: float, counts: torch.Tensor, top_k: int
) -> TeacherTargets:
    """Top `counts` entries of each row and the exact log mass of all others, in float64."""
    logprobs = torch.log_softmax(teacher_logits.double() / temperature, dim=-1)
    order = logprobs.argsort(dim=-1, descending=True)
    ranks = torch.arange(logprobs.shape[-1])
    sorted_logprobs = logprobs.gather(-1, order)
    outside = sorted_logprobs.masked_fill(ranks < counts.unsqueeze(-1), -torch.inf)
    mask = ranks[:top_k] < counts.unsqueeze(-1)
    return TeacherTargets(
        token_ids_BTK=order[..., :top_k] * mask,
        logprobs_BTK=sorted_logprobs[..., :top_k].masked_fill(~mask, -torch.inf),
        tail_logprob_BT=outside.logsumexp(-1),
        mask_BTK=mask,
    )


def reference_loss(
    student_logits: torch.Tensor,
    labels: torch.Tensor,
    targets: TeacherTargets,
    settings: LossSettings,
    num_items: int | None = None,
) -> float:
    """The loss of a batch."""
    logits = student_logits.detach().double().numpy()
    distillation, cross_entropy, count = 0.0, 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            label = int(labels[row, position])
            if label == settings.ignore_index:
                continue
            count += 1
            z = logits[row, position - 1]
            q1 = _softmax(z)
            cross_entropy -= np.log(q1[label])
            mask = targets.mask_BTK[row, position].numpy()
            ids = targets.token_ids_BTK[row, position].numpy()[mask]
            p = np.exp(targets.logprobs_BTK[row, position].double().numpy()[mask])
            p_tail = float(np.exp(float(targets.tail_logprob_BT[row, position])))
            distillation += _row(_softmax(z / settings.temperature), ids, p, p_tail, settings)
    factor = settings.temperature**2 if settings.scale_by_temperature_squared else 1.0
    total = settings.alpha * factor * distillation + (1 - settings.alpha) * cross_entropy
    return total / (count if num_items is None else num_items)


def _row(q: np.ndarray, ids: np.ndarray, p: np.ndarray, p_tail: float, settings: LossSettings) -> float:
    rest = np.setdiff1d(np.arange(len(q)), ids)
    if settings.divergence == "sampled":
        return float(-(p * np.log(q[ids])).sum())
    if settings.tail == "bucket":
        p, q = np.append(p, p_tail), np.append(q[ids], q[rest].sum())
    elif settings.tail == "renormalize":
        p, q = p / p.sum(), q[ids] / q[ids].sum()
    elif settings.tail == "zero":
        p, q = np.append(p / p.sum(), 0.0), np.append(q[ids], q[rest].sum())
    else:
        p = np.append(p, np.full(len(rest), p_tail / max(len(rest), 1)))
        q = np.append(q[ids], q[rest])
    if settings.divergence == "total_variation":
        return float(0.5 * np.abs(p - q).sum())
    if settings.beta == 0:
        return _kl(p, q)
    if settings.beta == 1:
        return _kl(q, p)
    mixture = settings.beta * p + (1 - settings.beta) * q
    return settings.beta * _kl(p, mixture) + (1 - settings.beta) * _kl(q, mixture)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    real = p > 0
    return float((p[real] * np.log(p[real] / q[real])).sum())


def _softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max())
    return exponentials / exponentials.sum()
