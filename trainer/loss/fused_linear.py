"""The distillation loss fused with the student's last projection: [B, T, V] logits never exist.

Shape legend: B batch, T tokens, H hidden size, V vocabulary, N rows that count, K stored entries; within
a chunk N is the chunk's rows.

Rows that count are projected a chunk at a time. The chunk's logits are reduced to the few numbers of
`StudentStatistics`, `row_losses` gives the loss, autograd over those numbers gives its slopes, and the
logits' buffer is overwritten by the gradient, which is multiplied into the gradients of the hidden states
and of the weight at once. So the backward pass does no work, memory does not grow with B T, and an
evaluation without gradients stops after the statistics. The price is the weight's gradient from forward to
backward, in fp32 until all chunks are added up where there are many; a frozen head does not pay it.

On a GPU the chunk's logits stay in the dtype of the product and Triton kernels pass over them twice
(`kernel_losses.py`); elsewhere Torch's code does the same in fp32 (`chunk_losses.py`). `chunk_plan.py` has
the sizes of chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.loss.divergences import RowLosses, weighted_sum
from trainer.loss.kernel_losses import Kernel
from trainer.loss.loss_inputs import LossOutput, LossRows, TeacherTargets, select_rows
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import per_item
from trainer.loss.projection import HeadForm, Projection


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
    the end where a GPU takes more than two chunks (`chunk_plan.py`).
    `chunk_rows` bounds the rows projected at a time, None takes what suits the device (`chunk_plan.py`).
    `kernel` is by what the logits are reduced: "auto" takes Triton on a CUDA device, "torch" never does.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows} must be at least 1, or None for what suits the device.")
    weight_VH = _whole(weight_VH)
    bias_V = None if bias_V is None else _whole(bias_V)
    vocab_size = min(settings.vocab_size or weight_VH.shape[0], weight_VH.shape[0])
    rows = select_rows(labels_BT, targets, settings, vocab_size, label_weights_BT)
    head = HeadForm(
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        chunk_rows=chunk_rows,
        product_dtype=_product_dtype(weight_VH),
        kernel=kernel,
        needs_gradient=torch.is_grad_enabled(),
    )
    hidden_NH = hidden_BTH.flatten(0, 1)[rows.position_N]
    total, *parts = _apply_fused(hidden_NH, weight_VH, bias_V, rows, settings, head)
    return per_item(total, RowLosses(*parts), rows, settings, num_items_in_batch)


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
        head: HeadForm,
    ) -> tuple[Tensor, ...]:
        needs = [head.needs_gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden_NH.device.type, enabled=False):
            projection = Projection(hidden_NH, weight_VH, bias_V, head, needs)
            step = projection.plan.chunk_rows
            chunks = [
                projection.chunk_losses(rows.slice(start, start + step), start, settings)
                for start in range(0, len(rows), step)
            ]
            ctx.save_for_backward(*projection.gradients())
        ctx.dtypes = [None if given is None else given.dtype for given in (hidden_NH, weight_VH, bias_V)]
        losses = _concatenate(chunks, hidden_NH.new_empty(0, dtype=projection.sum_dtype))
        outputs = tuple(getattr(losses, name) for name in RowLosses.__dataclass_fields__)
        ctx.mark_non_differentiable(*outputs)
        return weighted_sum(losses, settings), *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = (
            None if made is None else (made * grad_total).to(dtype)
            for made, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None


_apply_fused: Any = torch.compiler.disable(_FusedLinear.apply)  # pyright: ignore[reportCallIssue]
"""A loop over as many chunks as the batch's labels need is no graph; a compiled step calls it as it is."""


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

    if not isinstance(parameter, DTensor):
        return parameter
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
