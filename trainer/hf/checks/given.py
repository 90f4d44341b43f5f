"""Whether what a Trainer is given is of the kinds that it works with, told before any of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from trainer.batch.collate import DistillationCollator
from trainer.errors import GuardError
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.loss.loss_settings import LossSettings


def check_given(
    *, model: Any, args: Any, data_collator: Any, processing_class: Any, store_losses: Sequence[Any]
) -> None:
    """Raises TypeError for an argument of another kind, with what to give instead."""
    if model is not None and not isinstance(model, (str, nn.Module)):
        raise _other("model", model, "a causal language model of transformers, or its name or folder")
    if not isinstance(args, OfflineDistillationConfig):
        raise _other(
            "args", args, "OfflineDistillationConfig, which takes the arguments of transformers and the loss"
        )
    if type(data_collator) is not DistillationCollator:
        raise _other(
            "data_collator",
            data_collator,
            "DistillationCollator(CollateSettings(...)) itself: others are made of its settings for this "
            "student and for evaluation, without what another class does; for that, write a loop of your own",
        )
    if processing_class is not None and not hasattr(processing_class, "get_vocab"):
        raise _other("processing_class", processing_class, "the student's tokenizer, or leave it out")
    for one in store_losses:
        if not isinstance(one, LossSettings):
            raise _other("store_losses", one, "a LossSettings for each store, or leave it out")


def check_trainable(model: Any) -> None:
    """Raises GuardError for a student of which nothing is trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise GuardError(
            f"no weight of {type(model).__name__} is trained, as all are frozen (requires_grad is False); "
            "call requires_grad_() on those to be trained, or add adapters (peft_config)"
        )


def _other(name: str, value: Any, wanted: str) -> TypeError:
    found = f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"
    return TypeError(f"{name} is {found}; give {wanted}")
