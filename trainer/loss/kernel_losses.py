"""`losses_in_place` by Triton kernels: two passes over the logits, which stay in the product's dtype.

The formulas are those of `chunk_losses.py`, which is the reference and the fallback. What the passes do not
do is little: the stored ids and the label, [N, K + 1], are gathered and written by Torch in float32, and each
gradient is rounded to the logits' dtype once, when it is whole.

Shape legend: N rows of the chunk, K stored entries, V vocabulary; C = K + 1, the stored ids and the label.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trainer.errors import TrainingWarning
from trainer.loss.chunk_losses import (
    ChunkLosses,
    Slopes,
    losses_and_slopes,
    needs_two_softmaxes,
    num_rest,
    quotient,
)
from trainer.loss.divergences import StudentStatistics, row_losses
from trainer.loss.loss_inputs import LossRows
from trainer.loss.loss_settings import LossSettings

if TYPE_CHECKING:
    from trainer.loss.row_kernels import Passes, RestGradient, RestStatistics

Kernel = Literal["auto", "torch", "triton"]
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What stands between the product and the logits: softcap(product + bias)."""

    bias_V: Tensor | None = None
    """float32."""
    softcap: float | None = None

    def apply(self, product: Tensor, ids: Tensor) -> Tensor:
        """float32, the logits of products picked at `ids`."""
        logits = product.float() if self.bias_V is None else product.float() + self.bias_V[ids]
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logit / d product."""
        return 1.0 if self.softcap is None else 1 - (logits / self.softcap).square()


def takes_kernels(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether logits of this dtype on this device are reduced by Triton.

    "auto" does so on a CUDA device where the kernels compile and agree with Torch's code; if they do not, a
    warning says why. "triton" raises ValueError for a dtype that the kernels do not know.
    """
    if kernel == "triton" and dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"kernel='triton' knows logits of float32, bfloat16 and float16, not {dtype}; use kernel='auto'."
        )
    if kernel == "auto":
        return device.type == "cuda" and dtype in KERNEL_DTYPES and _kernels_work(device)
    return kernel == "triton"


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    """Try both passes on a few rows, once per device."""
    reason = _why_not(device)
    if reason is not None:
        warnings.warn(
            f"the loss does without its Triton kernels on {device}, which is slower: {reason}",
            TrainingWarning,
            stacklevel=2,
        )
    return reason is None


def _why_not(device: torch.device) -> str | None:
    logits_NV = torch.arange(2 * 5000, device=device).mul_(7919).remainder_(5003).view(2, 5000) / 500
    try:
        from trainer.loss import row_kernels

        passes = row_kernels.Passes(None, None, 2.0, two_sums=True, has_total=False)
        found = row_kernels.rest_statistics(logits_NV, passes)
        logsumexp_N = found.max_N / 2 + found.scaled_sum_N.log()
        row_kernels.write_rest_gradient(
            gradient_NV := logits_NV.clone(),
            row_kernels.RestGradient(
                found.max_N, torch.zeros_like(found.sum_N), 1 / found.sum_N, torch.zeros_like(found.sum_N)
            ),
            passes,
        )
    except Exception as error:  # noqa: BLE001
        # ImportError, or whatever Triton's compiler raises on a machine that lacks what it needs.
        return f"{error!r}"
    agrees = torch.allclose(logsumexp_N, (logits_NV / 2).logsumexp(1), atol=1e-4) and torch.allclose(
        gradient_NV, logits_NV.softmax(1), atol=1e-6
    )
    return None if agrees else "they disagree with Torch's code"


def losses_in_place(
    logits_NV: Tensor,
    rows: LossRows,
    settings: LossSettings,
    options: HeadOptions,
    *,
    needs_gradient: bool,
) -> ChunkLosses:
    """Losses of the rows. `logits_NV` holds the product and is used up: with `needs_gradient` it then holds
    d sum / d product.
    """
    from trainer.loss import row_kernels

    passes = row_kernels.Passes(
        bias_V=None if options.bias_V is None else options.bias_V.contiguous(),
        softcap=options.softcap,
        temperature=settings.temperature,
        two_sums=needs_two_softmaxes(rows, settings),
        has_total=settings.tail == "uniform" and rows.mask_NK.shape[1] > 0,
    )
    statistics, rest = _take_statistics(logits_NV, rows, settings, options, passes)
    if not needs_gradient:
        return ChunkLosses(row_losses(statistics, rows, settings))
    losses, slopes = losses_and_slopes(statistics, rows, settings, logits_NV.dtype)
    gradient = _rest_gradient(slopes, rest, rows, settings, logits_NV.shape[1], passes)
    row_kernels.write_rest_gradient(logits_NV, gradient, passes)
    _write_stored_and_label(logits_NV, rows, settings, options, statistics, slopes, gradient)
    return losses


def _take_statistics(
    logits_NV: Tensor, rows: LossRows, settings: LossSettings, options: HeadOptions, passes: Passes
) -> tuple[StudentStatistics, RestStatistics]:
    """Gather the stored ids and the label, set the stored ids to -inf, and reduce what remains."""
    from trainer.loss import row_kernels

    product_NK = logits_NV.gather(1, rows.token_ids_NK)
    stored_NK = options.apply(product_NK, rows.token_ids_NK)
    labels_N1 = rows.labels_N.unsqueeze(1)
    label_N = options.apply(logits_NV.gather(1, labels_N1), labels_N1).squeeze(1)
    has_entries_N1 = rows.mask_NK.any(dim=1, keepdim=True)
    logits_NV.scatter_(1, rows.token_ids_NK, product_NK.masked_fill(has_entries_N1, -torch.inf))
    rest = row_kernels.rest_statistics(logits_NV, passes)
    reference_N = rest.max_N.masked_fill(rest.max_N == -torch.inf, 0.0)
    mean_N = None
    if passes.has_total:
        mean_N = rest.total_N / num_rest(rows, logits_NV.shape[1]) / settings.temperature
    scaled_reference_N = reference_N / settings.temperature if passes.two_sums else reference_N
    statistics = StudentStatistics(
        stored_logits_NK=stored_NK,
        label_logit_N=label_N,
        rest_logsumexp_N=scaled_reference_N + rest.scaled_sum_N.log(),
        rest_logsumexp_unscaled_N=reference_N + rest.sum_N.log(),
        rest_mean_N=mean_N,
        max_logit_N=torch.cat([rest.max_N.unsqueeze(1), stored_NK], dim=1).amax(dim=1),
        vocab_size=logits_NV.shape[1],
    )
    return statistics, rest


def _rest_gradient(
    slopes: Slopes,
    rest: RestStatistics,
    rows: LossRows,
    settings: LossSettings,
    vocab_size: int,
    passes: Passes,
) -> RestGradient:
    from trainer.loss import row_kernels

    constant_N = torch.zeros_like(rest.sum_N)
    if slopes.rest_mean_N is not None:
        constant_N = slopes.rest_mean_N / num_rest(rows, vocab_size) / settings.temperature
    scaled_N, factor_N = slopes.rest_logsumexp_N, slopes.rest_logsumexp_unscaled_N
    if passes.two_sums:
        scaled_N = scaled_N / settings.temperature
    else:
        factor_N = factor_N + scaled_N
    return row_kernels.RestGradient(
        reference_N=rest.max_N.masked_fill(rest.max_N == -torch.inf, 0.0),
        scaled_factor_N=quotient(scaled_N, rest.scaled_sum_N),
        factor_N=quotient(factor_N, rest.sum_N),
        constant_N=constant_N,
    )


def _write_stored_and_label(
    logits_NV: Tensor,
    rows: LossRows,
    settings: LossSettings,
    options: HeadOptions,
    statistics: StudentStatistics,
    slopes: Slopes,
    gradient: RestGradient,
) -> None:
    """The gradients of the stored ids and of the label, each whole before it is rounded.

    Where two of a row's C columns are of one id (padding, a label that is stored) both write the same value.
    """
    stored_NK, label_N = statistics.stored_logits_NK.detach(), statistics.label_logit_N.detach()
    is_label_NK = rows.mask_NK & (rows.token_ids_NK == rows.labels_N.unsqueeze(1))
    label_slope_N1 = slopes.label_logit_N.unsqueeze(1)
    stored_NK = (slopes.stored_logits_NK + is_label_NK * label_slope_N1) * options.slope(stored_NK)
    shifted_N = label_N - gradient.reference_N
    rest_label_N = gradient.factor_N * shifted_N.exp() + slopes.label_logit_N
    if needs_two_softmaxes(rows, settings):
        rest_label_N = rest_label_N + gradient.scaled_factor_N * (shifted_N / settings.temperature).exp()
    rest_label_N = (rest_label_N + gradient.constant_N) * options.slope(label_N)
    in_stored_N = is_label_NK.any(dim=1)
    label_N1 = torch.where(in_stored_N, (stored_NK * is_label_NK).sum(1), rest_label_N).unsqueeze(1)
    labels_N1 = rows.labels_N.unsqueeze(1)
    ids_NC = torch.cat([torch.where(rows.mask_NK, rows.token_ids_NK, labels_N1), labels_N1], dim=1)
    values_NC = torch.cat([torch.where(rows.mask_NK, stored_NK, label_N1), label_N1], dim=1)
    logits_NV.scatter_(1, ids_NC, values_NC.to(logits_NV.dtype))
