"""The distillation loss fused with the student's last projection: [B, T, V] logits never exist.

Shape legend: B batch, T tokens, H hidden size, V vocabulary, N rows that count, K stored entries; within
a chunk N is the chunk's rows.

Rows that count are projected a chunk at a time. The chunk's logits are reduced to the few numbers of
`StudentStatistics`, `row_losses` gives the loss, autograd over those numbers gives its slopes, and the
logits' buffer is overwritten by the gradient, which is multiplied into the gradients of the hidden states
and of the weight at once. So the backward pass does no work, memory does not grow with B T, and an
evaluation without gradients stops after the statistics. The price is the weight's gradient from forward to
backward, in fp32 until all chunks are added up; a frozen head does not pay it.

On a GPU the chunk's logits stay in the dtype of the product and Triton kernels pass over them twice
(`kernel_losses.py`); elsewhere Torch's code does the same in fp32 (`chunk_losses.py`). `chunk_plan.py` has
the sizes of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.loss import kernel_losses
from trainer.loss.chunk_losses import losses_in_place, needs_two_softmaxes
from trainer.loss.chunk_plan import ChunkPlan, add_product, plan_chunks
from trainer.loss.divergences import RowLosses, weighted_sum
from trainer.loss.kernel_losses import HeadOptions, Kernel, takes_kernels
from trainer.loss.loss_inputs import LossOutput, LossRows, TeacherTargets, select_rows
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import per_item


class FusedLinearTopKDistillationLoss(nn.Module):
    """`fused_linear_topk_distillation_loss` with settings and the head's fixed options bound."""

    def __init__(
        self,
        settings: LossSettings,
        *,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        chunk_rows: int | None = None,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.settings = settings
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.chunk_rows = chunk_rows
        self.kernel: Kernel = kernel

    def forward(
        self,
        hidden_BTH: Tensor,
        weight_VH: Tensor,
        labels_BT: Tensor,
        targets: TeacherTargets | None,
        bias_V: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        label_weights_BT: Tensor | None = None,
    ) -> LossOutput:
        return fused_linear_topk_distillation_loss(
            hidden_BTH,
            weight_VH,
            labels_BT,
            targets,
            self.settings,
            bias_V=bias_V,
            logit_scale=self.logit_scale,
            logit_softcap=self.logit_softcap,
            chunk_rows=self.chunk_rows,
            kernel=self.kernel,
            num_items_in_batch=num_items_in_batch,
            label_weights_BT=label_weights_BT,
        )


def fused_linear_topk_distillation_loss(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    labels_BT: Tensor,
    targets: TeacherTargets | None,
    settings: LossSettings,
    *,
    bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel = "auto",
    num_items_in_batch: Tensor | int | None = None,
    label_weights_BT: Tensor | None = None,
) -> LossOutput:
    """`topk_distillation_loss` of softcap(scale (hidden weight^T + bias)), without the logits.

    `hidden_BTH` is what the head gets (after the final norm), unshifted; `weight_VH` may be tied to the
    embedding, frozen, or a sharded DTensor (gathered once, gradients averaged). `logit_scale` is Cohere's, or
    1 / Granite's scaling; `logit_softcap` is Gemma's: cap tanh(z / cap). Products are in the autocast dtype
    where autocast is on, else in the weight's; everything else in float32, as is the weight's gradient until
    the end.
    `chunk_rows` bounds the rows projected at a time, None takes what suits the device (`chunk_plan.py`).
    `kernel` is by what the logits are reduced: "auto" takes Triton on a CUDA device, "torch" never does.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows} must be at least 1, or None for what suits the device.")
    weight_VH = _whole(weight_VH)
    bias_V = None if bias_V is None else _whole(bias_V)
    vocab_size = min(settings.vocab_size or weight_VH.shape[0], weight_VH.shape[0])
    rows = select_rows(labels_BT, targets, settings, vocab_size, label_weights_BT)
    product_dtype = _product_dtype(weight_VH)
    head = _Head(
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        chunk_rows=chunk_rows,
        product_dtype=product_dtype,
        by_kernels=takes_kernels(kernel, weight_VH.device, product_dtype),
        needs_gradient=torch.is_grad_enabled(),
    )
    hidden_NH = hidden_BTH.flatten(0, 1)[rows.position_N]
    total, *parts = _apply_fused(hidden_NH, weight_VH, bias_V, rows, settings, head)
    return per_item(total, RowLosses(*parts), rows, num_items_in_batch)


@dataclass(frozen=True, slots=True)
class _Head:
    """How hidden states become logits, and in what pieces."""

    vocab_size: int
    logit_scale: float
    logit_softcap: float | None
    chunk_rows: int | None
    product_dtype: torch.dtype
    by_kernels: bool
    needs_gradient: bool


class _FusedLinear(torch.autograd.Function):
    """Weighted sum of the rows' losses, and `RowLosses` without gradients. Gradients are made in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        rows: LossRows,
        settings: LossSettings,
        head: _Head,
    ) -> tuple[Tensor, ...]:
        needs = [head.needs_gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden_NH.device.type, enabled=False):
            projection = _Projection(hidden_NH, weight_VH, bias_V, head, needs)
            step = projection.plan.chunk_rows
            chunks = [
                projection.chunk_losses(rows.slice(start, start + step), start, settings)
                for start in range(0, len(rows), step)
            ]
            ctx.save_for_backward(*projection.gradients())
        losses = _concatenate(chunks, hidden_NH.new_empty(0, dtype=projection.sum_dtype))
        outputs = tuple(getattr(losses, name) for name in RowLosses.__dataclass_fields__)
        ctx.mark_non_differentiable(*outputs)
        return weighted_sum(losses, settings), *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = (None if made is None else made * grad_total for made in ctx.saved_tensors)
        return *scaled, None, None, None


_apply_fused: Any = torch.compiler.disable(_FusedLinear.apply)  # pyright: ignore[reportCallIssue]
"""A loop over as many chunks as the batch's labels need is no graph; a compiled step calls it as it is."""


class _Projection:
    """One pass over the chunks of a batch: the buffers they share and the gradients they add up."""

    def __init__(
        self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, head: _Head, needs: list[bool]
    ) -> None:
        self.head = head
        self.inputs = (hidden_NH, weight_VH, bias_V)
        # The scale is applied to the narrow side: (s h) W^T + s b.
        self.hidden_NH = (hidden_NH * head.logit_scale).to(head.product_dtype)
        self.weight_VH = weight_VH[: head.vocab_size].to(head.product_dtype)
        self.sum_dtype = torch.promote_types(head.product_dtype, torch.float32)
        self.bias_V = None
        if bias_V is not None:
            self.bias_V = bias_V[: head.vocab_size].to(self.sum_dtype) * head.logit_scale
        logits_dtype = head.product_dtype if head.by_kernels else self.sum_dtype
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
        self.grad_hidden_NH = torch.empty_like(self.hidden_NH) if needs[0] else None
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
        if self.head.by_kernels:
            options = HeadOptions(self.bias_V, self.head.logit_softcap)
            losses = kernel_losses.losses_in_place(
                logits_NV, rows, settings, options, needs_gradient=self.needs_gradient
            )
            if self.needs_gradient:
                self._add_gradients(logits_NV, hidden_NH, start)
            return losses
        if self.bias_V is not None:
            logits_NV.add_(self.bias_V)
        cap_slope_NV = self._cap(logits_NV)
        losses = losses_in_place(
            logits_NV, rows, settings, self._scratch(rows, settings), needs_gradient=self.needs_gradient
        )
        if self.needs_gradient:
            if cap_slope_NV is not None:
                logits_NV.mul_(cap_slope_NV)
            self._add_gradients(logits_NV, hidden_NH, start)
        return losses

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, in the inputs' dtypes; None where not wanted."""
        if self.grad_hidden_NH is not None:
            self.grad_hidden_NH.mul_(self.head.logit_scale)
        if self.grad_bias_V is not None:
            self.grad_bias_V.mul_(self.head.logit_scale)
        made = (self.grad_hidden_NH, self.grad_weight_VH, self.grad_bias_V)
        return tuple(
            None if gradient is None or given is None else gradient.to(given.dtype)
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

    def _add_gradients(self, grad_logits_NV: Tensor, hidden_NH: Tensor, start: int) -> None:
        grad_NV = grad_logits_NV.to(self.head.product_dtype)
        if self.grad_hidden_NH is not None:
            torch.mm(grad_NV, self.weight_VH, out=self.grad_hidden_NH[start : start + len(grad_NV)])
        if self.grad_weight_VH is not None:
            add_product(self.grad_weight_VH[: self.head.vocab_size], grad_NV, hidden_NH)
        if self.grad_bias_V is not None:
            self.grad_bias_V[: self.head.vocab_size].add_(grad_logits_NV.sum(0, dtype=self.sum_dtype))


def _concatenate(chunks: list[RowLosses], nothing_N: Tensor) -> RowLosses:
    names = RowLosses.__dataclass_fields__
    if not chunks:
        return RowLosses(**dict.fromkeys(names, nothing_N))
    return RowLosses(**{name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in names})


def _whole(parameter: Tensor) -> Tensor:
    """The whole of a sharded parameter (DTensor), differentiably; anything else as it is.

    Its gradient is the mean over the ranks that hold it: right where they see different data (FSDP2), and
    where they see the same (tensor parallelism).
    """
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import DTensor, Partial  # takes seconds to import

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    whole = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole


def _product_dtype(weight_VH: Tensor) -> torch.dtype:
    device_type = weight_VH.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return weight_VH.dtype
