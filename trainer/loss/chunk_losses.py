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


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives of the weighted sum of the losses by the `StudentStatistics` of the same names."""

    stored_logits_NK: Tensor
    label_logit_N: Tensor
    rest_logsumexp_N: Tensor
    rest_logsumexp_unscaled_N: Tensor
    rest_mean_N: Tensor | None


def losses_and_slopes(
    statistics: StudentStatistics, rows: LossRows, settings: LossSettings
) -> tuple[RowLosses, Slopes]:
    """Losses of the rows and, by autograd over [N, K], their slopes. The statistics' tensors are distinct."""
    names = [name for name in Slopes.__dataclass_fields__ if getattr(statistics, name) is not None]
    with torch.enable_grad():
        leaves = [getattr(statistics, name).requires_grad_() for name in names]
        losses = row_losses(statistics, rows, settings)
        made = torch.autograd.grad(
            weighted_sum(losses, settings), leaves, allow_unused=True, materialize_grads=True
        )
    return losses, Slopes(**{"rest_mean_N": None, **dict(zip(names, made, strict=True))})


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
    statistics, sums = _take_statistics(logits_NV, rows, settings, scratch_NV)
    if not needs_gradient:
        return row_losses(statistics, rows, settings)
    losses, slopes = losses_and_slopes(statistics, rows, settings)
    _overwrite_by_gradient(logits_NV, scratch_NV, sums, slopes, rows, settings)
    return losses


@dataclass(frozen=True, slots=True)
class _RestSums:
    """The sums that turn exponentials into softmaxes."""

    scaled_N: Tensor
    """Sum of the exponentials in the logits' buffer."""
    unscaled_N: Tensor
    """Sum of those in the scratch buffer; the same tensor as `scaled_N` without one."""


def _take_statistics(
    logits_NV: Tensor, rows: LossRows, settings: LossSettings, scratch_NV: Tensor | None
) -> tuple[StudentStatistics, _RestSums]:
    """Reduce the logits; the buffers keep exp of the rest's logits less their maximum, 0 on S."""
    stored_NK = logits_NV.gather(1, rows.token_ids_NK)
    label_N = logits_NV.gather(1, rows.labels_N.unsqueeze(1)).squeeze(1)
    rest_mean_N = None
    if settings.tail == "uniform" and rows.mask_NK.shape[1]:
        rest_total_N = logits_NV.sum(1) - torch.where(rows.mask_NK, stored_NK, 0.0).sum(1)
        rest_mean_N = rest_total_N / num_rest(rows, logits_NV.shape[1]) / settings.temperature
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
    statistics = StudentStatistics(
        stored_logits_NK=stored_NK,
        label_logit_N=label_N,
        rest_logsumexp_N=shift_N1[:, 0] + sum_N.log(),
        rest_logsumexp_unscaled_N=shift_N1[:, -1] + unscaled_sum_N.log(),
        rest_mean_N=rest_mean_N,
        max_logit_N=max_N,
        vocab_size=logits_NV.shape[1],
    )
    return statistics, _RestSums(sum_N, unscaled_sum_N)


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
    sums: _RestSums,
    slopes: Slopes,
    rows: LossRows,
    settings: LossSettings,
) -> None:
    """Turn the exponentials into the gradient by the logits, given the slopes of the statistics."""
    stored_NK = slopes.stored_logits_NK
    logsumexp_N, unscaled_N = slopes.rest_logsumexp_N, slopes.rest_logsumexp_unscaled_N
    if scratch_NV is None:
        logits_NV.mul_(quotient(logsumexp_N + unscaled_N, sums.scaled_N).unsqueeze(1))
    else:
        logits_NV.mul_(quotient(logsumexp_N / settings.temperature, sums.scaled_N).unsqueeze(1))
        logits_NV.addcmul_(scratch_NV, quotient(unscaled_N, sums.unscaled_N).unsqueeze(1))
    if slopes.rest_mean_N is not None:
        each_N = slopes.rest_mean_N / num_rest(rows, logits_NV.shape[1]) / settings.temperature
        each_N1 = each_N.unsqueeze(1)
        logits_NV.add_(each_N1)
        stored_NK = stored_NK - torch.where(rows.mask_NK, each_N1, 0.0)
    logits_NV.scatter_add_(1, rows.token_ids_NK, stored_NK)
    logits_NV.scatter_add_(1, rows.labels_N.unsqueeze(1), slopes.label_logit_N.unsqueeze(1))


def num_rest(rows: LossRows, vocab_size: int) -> Tensor:
    """int64 [N]: ids outside S, at least 1."""
    return (vocab_size - rows.mask_NK.sum(1)).clamp(min=1)


def quotient(slope_N: Tensor, sum_N: Tensor) -> Tensor:
    """slope / sum; 0 for an empty rest. A sum of exp(z - max) is 0 or at least 1."""
    return torch.where(sum_N > 0, slope_N / sum_N.clamp(min=1.0), 0.0)
