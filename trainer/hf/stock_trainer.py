"""Our loss for the stock Trainer of transformers, on one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trainer.batch.collate_settings import LABEL_WEIGHTS, TEACHER_KEYS
from trainer.errors import GuardError
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss


def make_compute_loss_func(model: nn.Module, settings: LossSettings) -> Callable[..., Tensor]:
    """`compute_loss_func` for the stock Trainer: `Trainer(model, ..., compute_loss_func=...)`.

    The stock Trainer gives the whole batch to the model, and only its outputs to the loss. So a hook on
    the model takes the `teacher_*` keys out of each call and keeps them for the loss that follows.
    Needs `remove_unused_columns=False`.
    """
    taken: list[TeacherTargets | None] = [None]

    def take(_: nn.Module, args: tuple[Any, ...], batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if LABEL_WEIGHTS in batch:
            raise GuardError(
                "the stock Trainer counts labels and knows no weights of segments; train with "
                "OfflineDistillationTrainer, or leave CollateSettings segment_weights out"
            )
        taken[0] = TeacherTargets.from_batch(batch) if "teacher_token_ids" in batch else None
        # With a cache, transformers would not look where positions restart, and packed documents would mix.
        return args, {
            **{key: value for key, value in batch.items() if key not in TEACHER_KEYS},
            "use_cache": False,
        }

    def compute_loss(
        outputs: Mapping[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        output = topk_distillation_loss(
            outputs["logits"], labels, taken[0], settings, num_items_in_batch=num_items_in_batch
        )
        return output.loss

    model.register_forward_pre_hook(take, with_kwargs=True)
    return compute_loss
