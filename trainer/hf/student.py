"""What a student brings besides its logits: adapters, its token ids, and the loss of its router."""

from __future__ import annotations

from typing import Any

from trainer.errors import GuardError


def with_adapters(model: Any, peft_config: Any) -> Any:
    """The student with adapters of peft, which alone will be trained."""
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def check_not_tensor_parallel(model: Any) -> None:
    """Raises GuardError for a student that transformers has divided among processes when it loaded it.

    Such processes must all get the same batch, and the dataset gives each its own.
    """
    size = getattr(model, "tp_size", None) or 1
    if size > 1:
        raise GuardError(
            f"the student was loaded with tensor parallelism over {size} processes, which need the same "
            "batch, and the Trainer gives each its own; load it whole and shard it by FSDP (fsdp=True), or "
            "write a loop of your own with StreamingLogitDataset(replication=...)"
        )


def student_ids(model: Any) -> int | None:
    """Token ids that the student can look up; None if its embedding does not say."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None)


def router_loss_coef(model: Any) -> float:
    """Weight of the load-balancing loss of a mixture of experts; 0 for a student without one.

    A student has one if its configuration says output_router_logits, as for transformers.
    """
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return 0.0
    coef = getattr(config, "router_aux_loss_coef", None)
    if coef is None:
        raise GuardError(
            f"{type(model).__name__} has output_router_logits=True and no router_aux_loss_coef, so its "
            "load-balancing loss has no weight; set one, or output_router_logits=False to train without"
        )
    return float(coef)
