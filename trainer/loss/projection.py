"""The pass over a batch's chunks of rows: projects hidden states, and adds up the gradients.

Shape legend: N rows that count, H hidden size, V vocabulary; within a chunk N is the chunk's rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.loss import kernel_losses
from trainer.loss.chunk_losses import losses_in_place, needs_two_softmaxes
from trainer.loss.chunk_plan import ChunkPlan, add_product, plan_chunks
from trainer.loss.divergences import RowLosses
from trainer.loss.kernel_losses import HeadOptions, Kernel, takes_kernels
from trainer.loss.loss_inputs import LossRows
from trainer.loss.loss_settings import LossSettings


@dataclass(frozen=True, slots=True)
class HeadForm:
    """How hidden states become logits, and in what pieces."""

    vocab_size: int
    logit_scale: float
    logit_softcap: float | None
    chunk_rows: int | None
    product_dtype: torch.dtype
    kernel: Kernel
    """By what the logits are reduced."""
    needs_gradient: bool


class Projection:
    """One pass over the chunks of a batch: the buffers they share and the gradients they add up."""

    def __init__(
        self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, head: HeadForm, needs: list[bool]
    ) -> None:
        self.head = head
        self.inputs = (hidden_NH, weight_VH, bias_V)
        self.by_kernels = takes_kernels(head.kernel, weight_VH.device, head.product_dtype)
        # The scale is applied to the narrow side: (s h) W^T + s b.
        scaled_NH = hidden_NH if head.logit_scale == 1 else hidden_NH * head.logit_scale
        self.hidden_NH = scaled_NH.to(head.product_dtype)
        self.weight_VH = weight_VH[: head.vocab_size].to(head.product_dtype)
        self.sum_dtype = torch.promote_types(head.product_dtype, torch.float32)
        self.bias_V = None
        if bias_V is not None:
            self.bias_V = bias_V[: head.vocab_size].to(self.sum_dtype) * head.logit_scale
        logits_dtype = head.product_dtype if self.by_kernels else self.sum_dtype
        self.plan: ChunkPlan = plan_chunks(
            len(hidden_NH),
            weight_VH[: head.vocab_size],
            logits_dtype,
            self.sum_dtype,
            chunk_rows=head.chunk_rows,
            wants_weight=needs[1],
        )
        self.logits_NV = hidden_NH.new_empty(
            min(self.plan.chunk_rows, len(hidden_NH)), head.vocab_size, dtype=logits_dtype
        )
        self.scratch_NV: Tensor | None = None
        self.grad_hidden_NH = None
        if needs[0]:
            self.grad_hidden_NH = torch.zeros_like(self.hidden_NH, dtype=_kept(head.product_dtype))
        self.grad_weight_VH = None
        if needs[1]:
            self.grad_weight_VH = torch.zeros_like(weight_VH, dtype=self.plan.sum_dtype)
        self.grad_bias_V = None
        if bias_V is not None and needs[2]:
            self.grad_bias_V = torch.zeros_like(bias_V, dtype=self.sum_dtype)
        self.needs_gradient = any(needs)

    def chunk_losses(self, rows: LossRows, start: int, settings: LossSettings) -> RowLosses:
        """Losses of rows start, start + 1, ...; adds their gradients."""
        hidden_NH = self.hidden_NH[start : start + len(rows)]
        logits_NV = self._project(hidden_NH)
        if self.by_kernels:
            options = HeadOptions(self.bias_V, self.head.logit_softcap)
            losses = kernel_losses.losses_in_place(
                logits_NV, rows, settings, options, needs_gradient=self.needs_gradient
            )
            if self.needs_gradient:
                self._add_gradients(logits_NV, losses.scale, hidden_NH, start)
            return losses.rows
        if self.bias_V is not None:
            logits_NV.add_(self.bias_V)
        cap_slope_NV = self._cap(logits_NV)
        losses = losses_in_place(
            logits_NV,
            rows,
            settings,
            self._scratch(rows, settings),
            gradient_dtype=self.head.product_dtype if self.needs_gradient else None,
        )
        if self.needs_gradient:
            if cap_slope_NV is not None:
                logits_NV.mul_(cap_slope_NV)
            self._add_gradients(logits_NV, losses.scale, hidden_NH, start)
        return losses.rows

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, in the dtypes of `_kept`; None where not wanted."""
        if self.grad_hidden_NH is not None:
            self.grad_hidden_NH.mul_(self.head.logit_scale)
        if self.grad_bias_V is not None:
            self.grad_bias_V.mul_(self.head.logit_scale)
        made = (self.grad_hidden_NH, self.grad_weight_VH, self.grad_bias_V)
        return tuple(
            None if gradient is None or given is None else gradient.to(_kept(given.dtype))
            for gradient, given in zip(made, self.inputs, strict=True)
        )

    def _project(self, hidden_NH: Tensor) -> Tensor:
        logits_NV = self.logits_NV[: len(hidden_NH)]
        if self.head.product_dtype == logits_NV.dtype:
            return torch.mm(hidden_NH, self.weight_VH.t(), out=logits_NV)
        return logits_NV.copy_(hidden_NH @ self.weight_VH.t())

    def _scratch(self, rows: LossRows, settings: LossSettings) -> Tensor | None:
        if not needs_two_softmaxes(rows, settings):
            return None
        if self.scratch_NV is None:
            self.scratch_NV = torch.empty_like(self.logits_NV)
        return self.scratch_NV[: len(rows)]

    def _cap(self, logits_NV: Tensor) -> Tensor | None:
        """Soft-cap the logits in place; the slope d capped / d raw, if a gradient will need it."""
        cap = self.head.logit_softcap
        if cap is None:
            return None
        tanh_NV = logits_NV.div_(cap).tanh_()
        slope_NV = 1 - tanh_NV.square() if self.needs_gradient else None
        logits_NV.mul_(cap)
        return slope_NV

    def _add_gradients(self, grad_logits_NV: Tensor, scale: float, hidden_NH: Tensor, start: int) -> None:
        """Add the products of a gradient that is `scale` times too large."""
        grad_NV = grad_logits_NV.to(self.head.product_dtype)
        vocab_size = self.head.vocab_size
        if self.grad_hidden_NH is not None:
            grad_hidden_NH = self.grad_hidden_NH[start : start + len(grad_NV)]
            if grad_hidden_NH.dtype == grad_NV.dtype:
                torch.mm(grad_NV, self.weight_VH, out=grad_hidden_NH)
            else:
                add_product(grad_hidden_NH, grad_NV.t(), self.weight_VH, 1 / scale)
        if self.grad_weight_VH is not None:
            add_product(self.grad_weight_VH[:vocab_size], grad_NV, hidden_NH, 1 / scale)
        if self.grad_bias_V is not None:
            self.grad_bias_V[:vocab_size].add_(grad_logits_NV.sum(0, dtype=self.sum_dtype), alpha=1 / scale)


def _kept(dtype: torch.dtype) -> torch.dtype:
    """In what a gradient of this dtype is kept until it is scaled: float16 would lose what is small."""
    return torch.float32 if dtype == torch.float16 else dtype
