"""Between a causal language model and the loss: hidden states instead of logits, for any Hugging Face model.

Shape legend: B batch, T tokens, H hidden size, V vocabulary.

The fused loss wants what the output head gets, not what it gives. The model is still called as a whole
(through DistributedDataParallel, FSDP, peft), and the loss is computed in place of the head's forward:
there its weight is whole, whatever shards it, and gradients are reduced as without fusing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.batch.collate_settings import LABEL_WEIGHTS
from trainer.errors import SettingError, UnsupportedHeadError
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_inputs import LossOutput
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss
from trainer.loss.store_losses import added_up, loss_terms

MODEL_KEYS = ("input_ids", "attention_mask", "position_ids")
"""Keys of a batch that go into the model; labels stay outside, or it would compute a loss of its own."""
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the bound that logits are bent towards."""
_LARGE_LOGIT = 100.0
"""Logit at which a model is tried too: a bound hardly shows on those of one that is not trained yet."""
_LARGEST_PRODUCT = 1e4
"""What half precision holds with room."""
_CHECK_TOLERANCE = 1e-3
_HALF_ROUNDINGS = 4
"""Roundings of a half-precision model behind its head (scale, softcap), where `Head.logits` has float32."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Head:
    """The last projection of a model: logits = softcap(scale (hidden weight^T + bias))."""

    module: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., V]."""
        return self.behind(self.project(hidden))

    def project(self, hidden: Tensor) -> Tensor:
        """What the module itself gives, [..., V]."""
        return functional.linear(hidden, self.module.weight, self.module.bias)

    def behind(self, product: Tensor) -> Tensor:
        """What the model makes of the module's output, float32 [..., V]."""
        scaled = product.float() * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def find_head(model: Any) -> Head:
    """The head of a causal language model, checked on a few tokens against the logits of the model.

    Raises UnsupportedHeadError if the model does something else to them; use the unfused loss then.
    """
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        raise UnsupportedHeadError(
            f"the output head of {type(model).__name__} is a {type(module).__module__.partition('.')[0]} "
            f"{type(module).__name__}, not a plain linear layer, so it cannot be fused with the loss; set "
            "fused=False (loss.fused=false in a configuration), which also trains heads that peft adapts or "
            "saves whole"
        )
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    caps = (getattr(config, name, None) for name in _SOFTCAPS)
    head = Head(module, scale, next((float(cap) for cap in caps if cap), None))
    _check(model, head)
    return head


@torch.no_grad()
def _check(model: Any, head: Head) -> None:
    was_training = model.training
    model.eval()
    try:
        vocab_size = head.module.weight.shape[0]
        input_ids = torch.arange(4, device=head.module.weight.device).unsqueeze(0) % vocab_size
        logits_BTV = model(input_ids=input_ids, use_cache=False).logits
        expected_dtype, expected_BTV = logits_BTV.dtype, logits_BTV.float()
        with head_replaced(head, head.project) as taken:
            model(input_ids=input_ids, use_cache=False)
        (product_BTV,) = taken
        found_BTV = head.behind(product_BTV)
        largest = min(_LARGE_LOGIT / abs(head.scale), _LARGEST_PRODUCT)
        large_BTV = product_BTV * (largest / product_BTV.abs().max().clamp(min=1e-6))
        bent_BTV = _logits_behind(model, head, large_BTV, input_ids)
    finally:
        model.train(was_training)
    if not bool(expected_BTV.isfinite().all()):
        raise SettingError(
            f"the logits of {type(model).__name__} are not finite (NaN or infinite) on the ids "
            f"{input_ids[0].tolist()}: its weights are damaged or overflow in {expected_dtype}; load others, "
            "or train in another precision"
        )
    error = max(_difference(expected_BTV, found_BTV), _difference(bent_BTV, head.behind(large_BTV)))
    if not error < max(_CHECK_TOLERANCE, _HALF_ROUNDINGS * torch.finfo(expected_dtype).eps):
        raise UnsupportedHeadError(
            f"the logits of {type(model).__name__} differ by {error:.2g} of their size from its head's "
            f"projection with scale {head.scale} and softcap {head.softcap}; set fused=False "
            "(loss.fused=false in a configuration)"
        )


def _logits_behind(model: Any, head: Head, product_BTV: Tensor, input_ids: Tensor) -> Tensor:
    """Logits of the model if its head gave this."""
    head.module.forward = lambda _: product_BTV  # type: ignore[method-assign]
    try:
        return model(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        del head.module.forward


def _difference(expected: Tensor, found: Tensor) -> float:
    """The largest, by the size of what is expected."""
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))


@contextmanager
def head_replaced(head: Head, compute: Callable[[Tensor], Result]) -> Iterator[list[Result]]:
    """While it lasts, calls of the model append compute(the head's input [B, T, H]) instead of projecting.

    What the model then returns as logits is meaningless. If the result has a loss, the head's output
    carries it, as sharded modules gather their weights for the backward pass when a gradient reaches
    what they returned.
    """
    taken: list[Result] = []

    def forward(hidden_BTH: Tensor) -> Tensor:
        result = compute(hidden_BTH)
        if isinstance(result, LossOutput):
            output_111 = result.loss.view(1, 1, 1)
            result = replace(result, loss=output_111.view(()))
        else:
            output_111 = hidden_BTH[:1, :1, :1]
        taken.append(result)
        return output_111

    head.module.forward = forward  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        del head.module.forward


def total_weight(batch: Mapping[str, Tensor], ignore_index: int = -100) -> Tensor:
    """What a batch's loss is divided by: its labels that count, or the sum of their weights."""
    if LABEL_WEIGHTS in batch:
        return batch[LABEL_WEIGHTS][..., 1:].sum()
    return (batch["labels"][..., 1:] != ignore_index).sum()


def batch_loss(
    model: Any,
    batch: Mapping[str, Tensor],
    settings: LossSettings,
    *,
    head: Head | None = None,
    chunk_rows: int | None = None,
    num_items_in_batch: Tensor | int | None = None,
    store_settings: Sequence[LossSettings] = (),
) -> LossOutput:
    """The loss of a collated batch, on the device where it lies. With `head` it is fused, else dense.

    With `store_settings`, one for each store of the dataset, every label's loss is that of its store.
    """
    terms = loss_terms(batch, settings, store_settings)
    if len(terms) > 1 and num_items_in_batch is None:
        num_items_in_batch = total_weight(batch, settings.ignore_index)
    inputs = {key: batch[key] for key in MODEL_KEYS if key in batch}
    label_weights_BT = batch.get(LABEL_WEIGHTS)
    if head is None:
        logits_BTV = model(**inputs, use_cache=False).logits
        return added_up(
            [
                topk_distillation_loss(
                    logits_BTV,
                    term.labels_BT,
                    term.targets,
                    term.settings,
                    num_items_in_batch=num_items_in_batch,
                    label_weights_BT=label_weights_BT,
                )
                for term in terms
            ]
        )

    def fused_loss(hidden_BTH: Tensor) -> LossOutput:
        return added_up(
            [
                fused_linear_topk_distillation_loss(
                    hidden_BTH,
                    head.module.weight,
                    term.labels_BT,
                    term.targets,
                    term.settings,
                    bias_V=head.module.bias,
                    logit_scale=head.scale,
                    logit_softcap=head.softcap,
                    chunk_rows=chunk_rows,
                    num_items_in_batch=num_items_in_batch,
                    label_weights_BT=label_weights_BT,
                )
                for term in terms
            ]
        )

    with head_replaced(head, fused_loss) as taken:
        model(**inputs, use_cache=False)
    return taken[0]
