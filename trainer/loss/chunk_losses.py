"""Losses of a chunk of rows and their gradient, in the memory of the chunk's logits.

Shape legend: N rows of the chunk, K stored entries, V vocabulary; a trailing 1 is a kept axis.

The loss depends on a row's V logits through the few numbers of `StudentStatistics` (see
`trainer.loss.divergences`). Their slopes come from autograd over [N, K] tensors; what remains over V is

    dL/dz_v = slope of logsumexp / T * softmax over the rest of z / T     for v outside the stored ids S
    dL/dz_k = slope of z_k                                                for k in S, by scatter

and both softmaxes are what the buffer already holds. S is set to -inf before the maximum is taken, so
the tail is exact however small: a student that is sure of S loses no digits of log t_q.

float16 has no numbers below 6e-8, and a vocabulary's tail is made of smaller gradients. A loss that is scaled
(GradScaler) comes too late for them, as gradients are made here before its scale is known: so each chunk's
are scaled by a power of two of their own (`gradient_scale`), which `Projection` takes out of the products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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

    def times(self, factor: float) -> Slopes:
        if factor == 1:
            return self
        made = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(self, **{name: slope * factor for name, slope in made.items() if slope is not None})


@dataclass(frozen=True, slots=True)
class ChunkLosses:
    """Losses of a chunk's rows, and what stands in its buffer."""

    rows: RowLosses
    scale: float = 1.0
    """The buffer holds the gradient times this power of two."""


LARGEST_EXPONENT = 15
"""No gradient of a chunk reaches 2 to this power, which float16 still has."""
LARGEST_SCALE_EXPONENT = 100
"""So that float32 has the scale and its inverse."""


def gradient_scale(slopes: Slopes, settings: LossSettings, dtype: torch.dtype) -> float:
    """The power of two by which a chunk's gradient is multiplied before it is rounded to `dtype`.

    1 but for float16. There it is by the largest gradient that these slopes can make, which costs a wait for
    the device: each exponential is at most 1, their sum at least 1.
    """
    if dtype != torch.float16:
        return 1.0
    rest_N = slopes.rest_logsumexp_N.abs()
    if slopes.rest_mean_N is not None:
        rest_N = rest_N + slopes.rest_mean_N.abs()
    most_N = slopes.stored_logits_NK.abs().sum(1) + slopes.label_logit_N.abs()
    most_N = most_N + slopes.rest_logsumexp_unscaled_N.abs() + rest_N / settings.temperature
    largest = most_N.amax().item()
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** min(LARGEST_EXPONENT - math.frexp(largest)[1], LARGEST_SCALE_EXPONENT)


def losses_and_slopes(
    statistics: StudentStatistics, rows: LossRows, settings: LossSettings, dtype: torch.dtype
) -> tuple[ChunkLosses, Slopes]:
    """Losses of the rows and, by autograd over [N, K], their slopes, scaled for a gradient in `dtype`. The
    statistics' tensors are distinct."""
    names = [name for name in Slopes.__dataclass_fields__ if getattr(statistics, name) is not None]
    with torch.enable_grad():
        leaves = [getattr(statistics, name).requires_grad_() for name in names]
        losses = row_losses(statistics, rows, settings)
        made = torch.autograd.grad(
            weighted_sum(losses, settings), leaves, allow_unused=True, materialize_grads=True
        )
    slopes = Slopes(**{"rest_mean_N": None, **dict(zip(names, made, strict=True))})
    scale = gradient_scale(slopes, settings, dtype)
    return ChunkLosses(losses, scale), slopes.times(scale)


def losses_in_place(
    logits_NV: Tensor,
    rows: LossRows,
    settings: LossSettings,
    scratch_NV: Tensor | None,
    *,
    gradient_dtype: torch.dtype | None,
) -> ChunkLosses:
    """Losses of the rows. `logits_NV` is used up: with `gradient_dtype` it then holds d sum / d logits, which
    can be rounded to that dtype.

    `scratch_NV` is a second buffer of the same shape where `needs_two_softmaxes`, else None.
    """
    statistics, sums = _take_statistics(logits_NV, rows, settings, scratch_NV)
    if gradient_dtype is None:
        return ChunkLosses(row_losses(statistics, rows, settings))
    losses, slopes = losses_and_slopes(statistics, rows, settings, gradient_dtype)
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
