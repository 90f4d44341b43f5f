"""Losses of a chunk of rows and their gradient, in the memory of the chunk's logits.

Shape legend: N rows of the chunk, K stored entries, V vocabulary; a trailing 1 is a kept axis.

The loss depends on a row's V logits through the few numbers of `StudentStatistics` (see
`trainer.loss.divergences`). Their slopes come from autograd over [N, K] tensors; what remains over V is

    dL/dz_v = slope of logsumexp / T * softmax over the rest of z / T     for v outside the stored ids S
    dL/dz_k = slope of z_k                                                for k in S, by scatter

and both softmaxes are what the buffer already holds. S is set to -inf before the maximum is taken, so
the tail is exact however small: a student that is sure of S loses no digits of log t_q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.loss.divergences import RowLosses, StudentStatistics, row_losses, weighted_sum
from trainer.loss.loss_inputs import LossRows
from trainer.loss.loss_settings import LossSettings


def needs_two_softmaxes(rows: LossRows, settings: LossSettings) -> bool:
    """Whether distillation and cross-entropy see the logits at different temperatures."""
    return settings.temperature != 1 and rows.mask_NK.shape[1] > 0


def losses_in_place(
    logits_NV: Tensor,
    rows: LossRows,
    settings: LossSettings,
    scratch_NV: Tensor | None,
    *,
    needs_gradient: bool,
) -> RowLosses:
    """Losses of the rows. `logits_NV` is used up: with `needs_gradient` it then holds d sum / d logits.

    `scratch_NV` is a second buffer of the same shape where `needs_two_softmaxes`, else None.
    """
    leaves = _take_statistics(logits_NV, rows, settings, scratch_NV)
    statistics = leaves.statistics(logits_NV.shape[1])
    if not needs_gradient:
        return row_losses(statistics, rows, settings)
    with torch.enable_grad():
        wanted = [leaf.requires_grad_() for leaf in leaves.differentiable()]
        losses = row_losses(leaves.statistics(logits_NV.shape[1]), rows, settings)
        slopes = torch.autograd.grad(
            weighted_sum(losses, settings), wanted, allow_unused=True, materialize_grads=True
        )
    _overwrite_by_gradient(logits_NV, scratch_NV, leaves, slopes, rows, settings)
    return losses


@dataclass(frozen=True, slots=True)
class _Leaves:
    """The statistics as independent variables, and the sums that turn exponentials into softmaxes."""

    stored_NK: Tensor
    label_N: Tensor
    rest_logsumexp_N: Tensor
    rest_logsumexp_unscaled_N: Tensor
    rest_mean_N: Tensor | None
    max_N: Tensor
    rest_sum_N: Tensor
    """Sum of the exponentials in the logits' buffer."""
    rest_sum_unscaled_N: Tensor
    """Sum of those in the scratch buffer; the same tensor as `rest_sum_N` without one."""

    def differentiable(self) -> list[Tensor]:
        leaves = [self.stored_NK, self.label_N, self.rest_logsumexp_N, self.rest_logsumexp_unscaled_N]
        return leaves if self.rest_mean_N is None else [*leaves, self.rest_mean_N]

    def statistics(self, vocab_size: int) -> StudentStatistics:
        return StudentStatistics(
            stored_logits_NK=self.stored_NK,
            label_logit_N=self.label_N,
            rest_logsumexp_N=self.rest_logsumexp_N,
            rest_logsumexp_unscaled_N=self.rest_logsumexp_unscaled_N,
            rest_mean_N=self.rest_mean_N,
            max_logit_N=self.max_N,
            vocab_size=vocab_size,
        )


def _take_statistics(
    logits_NV: Tensor, rows: LossRows, settings: LossSettings, scratch_NV: Tensor | None
) -> _Leaves:
    """Reduce the logits; the buffers keep exp of the rest's logits less their maximum, 0 on S."""
    stored_NK = logits_NV.gather(1, rows.token_ids_NK)
    label_N = logits_NV.gather(1, rows.labels_N.unsqueeze(1)).squeeze(1)
    rest_mean_N = None
    if settings.tail == "uniform" and rows.mask_NK.shape[1]:
        rest_total_N = logits_NV.sum(1) - torch.where(rows.mask_NK, stored_NK, 0.0).sum(1)
        rest_mean_N = rest_total_N / _num_rest(logits_NV, rows) / settings.temperature
    has_entries_N1 = rows.mask_NK.any(dim=1, keepdim=True)
    logits_NV.scatter_(1, rows.token_ids_NK, torch.where(has_entries_N1, -torch.inf, stored_NK))
    rest_max_N1 = logits_NV.amax(dim=1, keepdim=True)
    max_N = torch.cat([rest_max_N1, stored_NK], dim=1).amax(dim=1)
    shift_N1 = rest_max_N1.masked_fill(rest_max_N1 == -torch.inf, 0.0)
    logits_NV.sub_(shift_N1)
    if scratch_NV is None:
        logits_NV.exp_()
    else:
        _exponentials(logits_NV, scratch_NV, settings.temperature)
        shift_N1 = torch.cat([shift_N1 / settings.temperature, shift_N1], dim=1)
    sum_N = logits_NV.sum(1)
    unscaled_sum_N = sum_N if scratch_NV is None else scratch_NV.sum(1)
    return _Leaves(
        stored_NK=stored_NK,
        label_N=label_N,
        rest_logsumexp_N=shift_N1[:, 0] + sum_N.log(),
        rest_logsumexp_unscaled_N=shift_N1[:, -1] + unscaled_sum_N.log(),
        rest_mean_N=rest_mean_N,
        max_N=max_N,
        rest_sum_N=sum_N,
        rest_sum_unscaled_N=unscaled_sum_N,
    )


def _exponentials(logits_NV: Tensor, scratch_NV: Tensor, temperature: float) -> None:
    """exp(z / T) in place of the logits, exp(z) in the scratch; squares are cheaper than an exponential."""
    if temperature in (2, 4):
        torch.square(logits_NV.mul_(1 / temperature).exp_(), out=scratch_NV)
        if temperature == 4:
            scratch_NV.square_()
    else:
        torch.exp(logits_NV, out=scratch_NV)
        logits_NV.mul_(1 / temperature).exp_()


def _overwrite_by_gradient(
    logits_NV: Tensor,
    scratch_NV: Tensor | None,
    leaves: _Leaves,
    slopes: tuple[Tensor, ...],
    rows: LossRows,
    settings: LossSettings,
) -> None:
    """Turn the exponentials into the gradient by the logits, given the slopes of the statistics."""
    stored_NK, label_N, logsumexp_N, unscaled_N, *mean = slopes
    if scratch_NV is None:
        logits_NV.mul_(_quotient(logsumexp_N + unscaled_N, leaves.rest_sum_N))
    else:
        logits_NV.mul_(_quotient(logsumexp_N / settings.temperature, leaves.rest_sum_N))
        logits_NV.addcmul_(scratch_NV, _quotient(unscaled_N, leaves.rest_sum_unscaled_N))
    if mean:
        each_N1 = (mean[0] / _num_rest(logits_NV, rows) / settings.temperature).unsqueeze(1)
        logits_NV.add_(each_N1)
        stored_NK = stored_NK - torch.where(rows.mask_NK, each_N1, 0.0)
    logits_NV.scatter_add_(1, rows.token_ids_NK, stored_NK)
    logits_NV.scatter_add_(1, rows.labels_N.unsqueeze(1), label_N.unsqueeze(1))


def _num_rest(logits_NV: Tensor, rows: LossRows) -> Tensor:
    return (logits_NV.shape[1] - rows.mask_NK.sum(1)).clamp(min=1)


def _quotient(slope_N: Tensor, sum_N: Tensor) -> Tensor:
    """slope / sum as a column; 0 for an empty rest."""
    return torch.where(sum_N > 0, slope_N / sum_N.clamp(min=1.0), 0.0).unsqueeze(1)
