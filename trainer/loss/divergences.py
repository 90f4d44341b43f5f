"""The loss of a row, from the few numbers through which it depends on the student's logits.

Shape legend: N rows, K stored entries, V vocabulary, C = K + 1 classes (the stored ids, then the tail).

With z the student's logits, S the stored ids and q = softmax(z / T), every loss here is a function of
the logits on S, logsumexp(z / T) over the ids outside S, and the label's logit. So the row's gradient
over V ids is a scatter on S plus a multiple of the student's softmax outside S, and neither a dense
nor a chunked projection needs a formula of its own: each computes `StudentStatistics`, and
`row_losses` does the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.loss.loss_inputs import LossRows
from trainer.loss.loss_settings import LossSettings


@dataclass(frozen=True, slots=True)
class StudentStatistics:
    """What the losses need of the student's logits. "Rest" is the ids outside S; all of V if K is 0."""

    stored_logits_NK: Tensor
    """z on the stored ids; on padding, the logit of a real entry."""
    label_logit_N: Tensor
    rest_logsumexp_N: Tensor
    """logsumexp(z / T) over the rest; -inf if the rest is empty."""
    rest_logsumexp_unscaled_N: Tensor
    """The same of z itself (T=1), for cross-entropy."""
    rest_mean_N: Tensor | None
    """Mean of z / T over the rest; only for tail="uniform"."""
    max_logit_N: Tensor
    """max over all V, detached."""
    vocab_size: int


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Per-row terms with gradients, and the detached values that metrics are means of."""

    distillation_N: Tensor
    cross_entropy_N: Tensor
    log_teacher_stored_N: Tensor
    log_student_stored_N: Tensor
    log_student_tail_N: Tensor
    top1_agrees_N: Tensor


def row_losses(statistics: StudentStatistics, rows: LossRows, settings: LossSettings) -> RowLosses:
    """Distillation and cross-entropy of each row, neither weighted by alpha nor divided by a count; of rows
    with weights, times the row's."""
    stored_NK = statistics.stored_logits_NK
    cross_entropy_N = (
        torch.logaddexp(
            statistics.rest_logsumexp_unscaled_N,
            masked_logsumexp(stored_NK, rows.mask_NK),
        )
        - statistics.label_logit_N
    )
    if rows.weight_N is not None:
        cross_entropy_N = cross_entropy_N * rows.weight_N
    if rows.mask_NK.shape[1] == 0:
        nothing_N = torch.zeros_like(cross_entropy_N)
        return RowLosses(nothing_N, cross_entropy_N, *[nothing_N.detach()] * 4)
    scaled_NK = stored_NK / settings.temperature
    log_stored_N = masked_logsumexp(scaled_NK, rows.mask_NK)
    logsumexp_N = torch.logaddexp(statistics.rest_logsumexp_N, log_stored_N)
    log_q_NC, log_p_NC = _class_logprobs(statistics, rows, settings, scaled_NK, log_stored_N, logsumexp_N)
    distillation_N = divergence(log_p_NC, log_q_NC, settings) * rows.mask_NK.any(dim=1)
    if settings.scale_by_temperature_squared:
        distillation_N = distillation_N * settings.temperature**2
    if rows.weight_N is not None:
        distillation_N = distillation_N * rows.weight_N
    with torch.no_grad():
        top_N1 = rows.logprobs_NK.argmax(dim=1, keepdim=True)
        agrees_N = (stored_NK.gather(1, top_N1).squeeze(1) >= statistics.max_logit_N) & rows.mask_NK.any(1)
        return RowLosses(
            distillation_N=distillation_N,
            cross_entropy_N=cross_entropy_N,
            log_teacher_stored_N=masked_logsumexp(rows.logprobs_NK, rows.mask_NK),
            log_student_stored_N=log_stored_N - logsumexp_N,
            log_student_tail_N=statistics.rest_logsumexp_N - logsumexp_N,
            top1_agrees_N=agrees_N.to(distillation_N.dtype),
        )


def weighted_sum(losses: RowLosses, settings: LossSettings) -> Tensor:
    """Sum over rows of alpha distillation + (1 - alpha) cross-entropy; a term of weight 0 is left out."""
    if settings.alpha == 0:
        return losses.cross_entropy_N.sum()
    if settings.alpha == 1:
        return losses.distillation_N.sum()
    return settings.alpha * losses.distillation_N.sum() + (1 - settings.alpha) * losses.cross_entropy_N.sum()


def _class_logprobs(
    statistics: StudentStatistics,
    rows: LossRows,
    settings: LossSettings,
    scaled_NK: Tensor,
    log_stored_N: Tensor,
    logsumexp_N: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log masses of student and teacher over the K + 1 classes, as `tail` wants them. -inf: no such class."""
    dtype = scaled_NK.dtype
    log_p_NK = rows.logprobs_NK.to(dtype)
    log_p_tail_N = rows.tail_logprob_N.to(dtype)
    log_q_tail_N = statistics.rest_logsumexp_N - logsumexp_N
    log_q_total_N = logsumexp_N
    no_tail_N = torch.full_like(log_p_tail_N, -torch.inf)
    if settings.divergence == "sampled":
        log_p_tail_N = no_tail_N
    elif settings.tail in ("zero", "renormalize"):
        log_sum_N = masked_logsumexp(log_p_NK, rows.mask_NK)
        log_p_NK = log_p_NK - log_sum_N.masked_fill(log_sum_N == -torch.inf, 0.0).unsqueeze(1)
        log_p_tail_N = no_tail_N
        if settings.tail == "renormalize":
            log_q_total_N, log_q_tail_N = log_stored_N, no_tail_N
    elif settings.tail == "uniform":
        # p_v = t_p / n on n ids: sum p_v (log p_v - log q_v) = t_p (log t_p - log n - mean log q_v).
        if statistics.rest_mean_N is None:
            raise ValueError("tail='uniform' needs the mean log-probability of what is not stored")
        num_rest_N = statistics.vocab_size - rows.mask_NK.sum(1)
        log_q_tail_N = torch.where(
            num_rest_N > 0,
            num_rest_N.clamp(min=1).to(dtype).log() + statistics.rest_mean_N - logsumexp_N,
            -torch.inf,
        )
    # A student without ids outside S cannot take up a tail, and nothing can be learned from it.
    log_p_tail_N = log_p_tail_N.masked_fill(log_q_tail_N == -torch.inf, -torch.inf)
    log_q_NK = torch.where(rows.mask_NK, scaled_NK - log_q_total_N.unsqueeze(1), -torch.inf)
    return (
        torch.cat([log_q_NK, log_q_tail_N.unsqueeze(1)], dim=1),
        torch.cat([log_p_NK, log_p_tail_N.unsqueeze(1)], dim=1),
    )


def divergence(log_p_NC: Tensor, log_q_NC: Tensor, settings: LossSettings) -> Tensor:
    """Divergence of the student q from the teacher p over classes, each row summed; 0 log 0 = 0.

    KL(q || p) is infinite where only the teacher's mass is 0; there it counts as the smallest normal number.
    """
    p_NC = log_p_NC.exp()
    # Finite stand-ins where a side is empty: their products are with an exact zero, in both directions.
    in_p_NC, in_q_NC = log_p_NC > -torch.inf, log_q_NC > -torch.inf
    log_p_NC = torch.where(in_p_NC, log_p_NC, 0.0)
    q_NC = log_q_NC.exp()
    if settings.divergence == "sampled":
        return -(p_NC * torch.where(in_p_NC, log_q_NC, 0.0)).sum(1)
    if settings.divergence == "total_variation":
        return 0.5 * (p_NC - q_NC).abs().sum(1)
    if settings.beta == 0:
        return (p_NC * (log_p_NC - torch.where(in_p_NC, log_q_NC, 0.0))).sum(1)
    finite_log_q_NC = torch.where(in_q_NC, log_q_NC, 0.0)
    if settings.beta == 1:
        floor = math.log(torch.finfo(torch.float32).tiny)
        return (q_NC * (finite_log_q_NC - torch.where(in_p_NC, log_p_NC, floor))).sum(1)
    return _jensen_shannon(log_p_NC, finite_log_q_NC, in_p_NC, in_q_NC, settings.beta)


def _jensen_shannon(
    log_p_NC: Tensor, log_q_NC: Tensor, in_p_NC: Tensor, in_q_NC: Tensor, beta: float
) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (the convention of GKD and TRL)."""
    low = torch.finfo(log_p_NC.dtype).min / 4
    weighted_p_NC = torch.where(in_p_NC, log_p_NC, low) + math.log(beta)
    weighted_q_NC = torch.where(in_q_NC, log_q_NC, low) + math.log1p(-beta)
    log_m_NC = torch.logaddexp(weighted_p_NC, weighted_q_NC)
    from_p_NC = torch.where(in_p_NC, log_p_NC.exp() * (log_p_NC - log_m_NC), 0.0)
    from_q_NC = torch.where(in_q_NC, log_q_NC.exp() * (log_q_NC - log_m_NC), 0.0)
    return (beta * from_p_NC + (1 - beta) * from_q_NC).sum(1)


def masked_logsumexp(values_NK: Tensor, mask_NK: Tensor) -> Tensor:
    """logsumexp over the masked entries; -inf with a zero gradient, not NaN, where there are none."""
    if values_NK.shape[1] == 0:
        return values_NK.new_full((values_NK.shape[0],), -torch.inf)
    finite_NK = mask_NK & (values_NK > -torch.inf)
    any_N = finite_NK.any(dim=1)
    filled_NK = torch.where(finite_NK, values_NK, -torch.inf)
    filled_NK = torch.where(any_N.unsqueeze(1), filled_NK, 0.0)
    return torch.where(any_N, torch.logsumexp(filled_NK, dim=1), -torch.inf)
