"""Distillation from stored top-K targets with an exact tail, on logits that exist.

Shape legend: B batch, T tokens, N rows that count, K stored entries, V vocabulary.

Per row, with z the student's logits, q = softmax(z / T), p the teacher at T, S the stored ids and
t = 1 - sum over S (tail="bucket", beta=0):

    L = T^2 [ sum_S p_k (log p_k - log q_k) + t_p (log t_p - log t_q) ]

This is the KL over K + 1 classes: the full KL less t_p KL(p_tail || q_tail), hence never above it, zero
when student equals teacher, and with a gradient on every id: T (q_v - p_v) on S, T q_v (1 - t_p / t_q)
off S. Cross-entropy is on the same logits at T=1. A batch's loss is the sum over labels other than
`ignore_index`, divided by their number (`num_items_in_batch` under gradient accumulation). Rows with
weights w give sum(w L) / sum(w), over the labels of the whole optimizer step.

`trainer.loss.fused_linear` gives the same without ever holding [B, T, V].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.loss.divergences import RowLosses, StudentStatistics, row_losses, weighted_sum
from trainer.loss.loss_inputs import LossMetrics, LossOutput, LossRows, TeacherTargets, select_rows
from trainer.loss.loss_settings import LossSettings


class TopKDistillationLoss(nn.Module):
    """`topk_distillation_loss` with its settings bound."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(
        self,
        student_logits_BTV: Tensor,
        labels_BT: Tensor,
        targets: TeacherTargets | None,
        num_items_in_batch: Tensor | int | None = None,
        label_weights_BT: Tensor | None = None,
    ) -> LossOutput:
        return topk_distillation_loss(
            student_logits_BTV,
            labels_BT,
            targets,
            self.settings,
            num_items_in_batch=num_items_in_batch,
            label_weights_BT=label_weights_BT,
        )


def topk_distillation_loss(
    student_logits_BTV: Tensor,
    labels_BT: Tensor,
    targets: TeacherTargets | None,
    settings: LossSettings,
    *,
    num_items_in_batch: Tensor | int | None = None,
    label_weights_BT: Tensor | None = None,
) -> LossOutput:
    """Loss of a batch. `targets` may be None only with alpha=0. Logits of any float type; sums in float32.

    `labels_BT` and `targets` are as the collator gives them, unshifted. `num_items_in_batch` is the number
    of labels that count in the whole optimizer step, with `label_weights_BT` the sum of their weights; None
    takes this batch's own. Weights are positive where a label counts; None is 1 everywhere.
    """
    vocab_size = settings.vocab_size or student_logits_BTV.shape[2]
    rows = select_rows(labels_BT, targets, settings, vocab_size, label_weights_BT)
    logits_NV = student_logits_BTV.flatten(0, 1)[rows.position_N, :vocab_size]
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    losses = row_losses(_statistics(logits_NV, rows, settings), rows, settings)
    return per_item(weighted_sum(losses, settings), losses, rows, settings, num_items_in_batch)


def _statistics(logits_NV: Tensor, rows: LossRows, settings: LossSettings) -> StudentStatistics:
    """By autograd, with S masked to -inf: log(1 - sum of q on S) would lose a confident student's tail."""
    num_rest_N = logits_NV.shape[1] - rows.mask_NK.sum(1)
    is_masked_N = rows.mask_NK.any(dim=1) & (num_rest_N > 0)
    stored_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
    stored_NV.scatter_(1, rows.token_ids_NK, is_masked_N.unsqueeze(1).expand_as(rows.mask_NK))
    rest_NV = logits_NV.masked_fill(stored_NV, -torch.inf)

    def rest_logsumexp(temperature: float) -> Tensor:
        scaled_NV = rest_NV if temperature == 1 else rest_NV / temperature
        return scaled_NV.logsumexp(dim=1).masked_fill(num_rest_N == 0, -torch.inf)

    rest_mean_N = None
    if settings.tail == "uniform":
        rest_total_N = logits_NV.masked_fill(stored_NV, 0.0).sum(1)
        rest_mean_N = rest_total_N / num_rest_N.clamp(min=1) / settings.temperature
    picked_NC = logits_NV.gather(1, torch.cat([rows.token_ids_NK, rows.labels_N.unsqueeze(1)], dim=1))
    unscaled_N = rest_logsumexp(1.0)
    return StudentStatistics(
        stored_logits_NK=picked_NC[:, :-1],
        label_logit_N=picked_NC[:, -1],
        rest_logsumexp_N=unscaled_N if settings.temperature == 1 else rest_logsumexp(settings.temperature),
        rest_logsumexp_unscaled_N=unscaled_N,
        rest_mean_N=rest_mean_N,
        max_logit_N=logits_NV.detach().amax(dim=1),
        vocab_size=logits_NV.shape[1],
    )


def per_item(
    total: Tensor,
    losses: RowLosses,
    rows: LossRows,
    settings: LossSettings,
    num_items_in_batch: Tensor | int | None,
) -> LossOutput:
    """Divide the weighted sum and its parts by the item count; no label that counts gives 0, not NaN."""
    num_items = rows.total_weight if num_items_in_batch is None else num_items_in_batch
    if isinstance(num_items, Tensor):
        num_items = torch.where(num_items > 0, num_items, 1)  # a sum of weights may lie below 1
    else:
        num_items = max(num_items, 1)
    return LossOutput(
        loss=total / num_items,
        distillation=losses.distillation_N.detach().sum() / num_items,
        cross_entropy=losses.cross_entropy_N.detach().sum() / num_items,
        metrics=mean_metrics(losses, rows, settings),
    )


@torch.no_grad()
def mean_metrics(losses: RowLosses, rows: LossRows, settings: LossSettings) -> LossMetrics:
    """Means over the rows that count; see `LossMetrics`."""
    has_teacher = rows.mask_NK.shape[1] > 0
    # Filled in on the device: a copy from the host waits for all that a GPU has still to do.
    num_rows = rows.labels_N.new_full((), len(rows))
    count = num_rows.clamp(min=1)
    weight = rows.total_weight

    def mean(values_N: Tensor) -> Tensor:
        return values_N.sum() / count if has_teacher else torch.zeros_like(count, dtype=values_N.dtype)

    def of_masses(values_N: Tensor) -> Tensor:
        return mean(values_N) if settings.has_tail or not has_teacher else mean(values_N * torch.nan)

    log_teacher_tail_N = rows.tail_logprob_N.to(losses.distillation_N.dtype)
    tail_kl_N = _weighted_log_ratio(log_teacher_tail_N, losses.log_student_tail_N) + _weighted_log_ratio(
        losses.log_teacher_stored_N, losses.log_student_stored_N
    )
    return LossMetrics(
        num_rows=num_rows,
        num_teacher_rows=num_rows if has_teacher else torch.zeros_like(num_rows),
        weight=weight if isinstance(weight, Tensor) else num_rows,
        teacher_mass=of_masses(losses.log_teacher_stored_N.exp()),
        student_mass=mean(losses.log_student_stored_N.exp()),
        tail_kl=of_masses(tail_kl_N),
        top1_agreement=mean(losses.top1_agrees_N),
    )


def _weighted_log_ratio(log_p_N: Tensor, log_q_N: Tensor) -> Tensor:
    """p (log p - log q), 0 where p is 0."""
    return torch.where(log_p_N > -torch.inf, log_p_N.exp() * (log_p_N - log_q_N), 0.0)


def naive_topk_loss(student_logits_BTV: Tensor, targets: TeacherTargets, temperature: float = 1.0) -> Tensor:
    """The loss most code has, only to reproduce others: `kl_div(.., "batchmean") * T^2` of gathered logits.

    Both sides are renormalised over S, so nothing is learned about the mass outside S (the gradient there
    is exactly zero, and at K=1 everywhere); "batchmean" on [B, T, K] is the per-token mean times T tokens;
    padding and prompt rows count. Logits and targets are shifted once, as in the exact loss.
    """
    student_BTK = student_logits_BTV[:, :-1].gather(2, targets.token_ids_BTK[:, 1:]) / temperature
    return (
        functional.kl_div(
            functional.log_softmax(student_BTK, dim=2),
            functional.softmax(targets.logprobs_BTK[:, 1:], dim=2),
            reduction="batchmean",
        )
        * temperature**2
    )
