"""What a student brings besides its logits: adapters, its token ids, and the loss of its router."""

from __future__ import annotations

from typing import Any

import torch

from trainer.errors import GuardError
from trainer.hf.checks.adapters import check_adapters


def with_adapters(model: Any, peft_config: Any, *, seed: int) -> Any:
    """The student with adapters of peft, which alone will be trained; `seed` is that of their weights."""
    from peft import get_peft_model

    check_adapters(model, peft_config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, peft_config)


def merge_adapters(trainer: Any) -> None:
    """Make of a trained student with adapters, sharded or not, one without, whose weights hold them."""
    trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.model_wrapped = trainer.model


def keep_4_bits_differentiable(model: Any) -> None:
    """Leave the weights of layers that bitsandbytes holds in 4 bits in the layout that it can train through.

    On a CPU with AVX512-BF16, its layers lay them out anew at the first evaluation, for a kernel that has no
    gradient: what is trained below such a layer then silently gets none through it. Raises GuardError where
    that has happened: its own way back loses the scales' precision.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise GuardError(
                f"the student's {name} is held in 4 bits and was evaluated on this CPU before training: "
                "bitsandbytes has changed its layout to one without a gradient; load the student anew and "
                "construct the trainer before evaluating it"
            )


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
    if coef and not _has_router_loss(model):
        raise GuardError(
            f"{type(model).__name__} has output_router_logits=True, and its output has no load-balancing "
            "loss (aux_loss): set output_router_logits=False to train without"
        )
    return float(coef)


@torch.no_grad()
def _has_router_loss(model: Any) -> bool:
    """Tried on a few tokens, as some mixtures of experts have the setting and compute nothing of it."""
    weight = model.get_input_embeddings().weight
    input_ids = torch.arange(4, device=weight.device).unsqueeze(0) % weight.shape[0]
    was_training = model.training
    model.eval()
    try:
        return getattr(model(input_ids=input_ids, use_cache=False), "aux_loss", None) is not None
    finally:
        model.train(was_training)
