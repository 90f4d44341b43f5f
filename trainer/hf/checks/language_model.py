"""Whether a student is a causal language model: one that predicts each token from those before it."""

from __future__ import annotations

from typing import Any

from trainer.errors import GuardError
from trainer.hf.checks.packing_check import LEAK_TOLERANCE, largest_leak


def check_has_head(model: Any) -> None:
    """Raises GuardError for what is no language model of transformers, or has an encoder."""
    name = type(model).__name__
    remedy = "give a causal language model of transformers, as AutoModelForCausalLM loads it"
    if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
        raise GuardError(f"the student is a {name}, which has no configuration or no output head; {remedy}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise GuardError(
            f"{name} reads its prompt by an encoder, and labels are of prompt and answer in one; {remedy}"
        )
    if model.get_output_embeddings() is None:
        raise GuardError(f"{name} has no output head, so it predicts no tokens; {remedy}")


def check_causal(model: Any) -> None:
    """Raises GuardError for a student that sees the tokens which it is to predict, tried on itself.

    It would learn to a low loss, and be good for nothing.
    """
    was_training = model.training
    model.eval()
    try:
        leak = largest_leak(model, None)
    except NotImplementedError as error:  # FlexAttention on a CPU
        raise GuardError(
            f"{type(model).__name__} has no gradient here: {error} Load it with another attention "
            "(attn_implementation='sdpa', in a configuration student.attn_implementation)"
        ) from error
    finally:
        model.train(was_training)
    if not leak < LEAK_TOLERANCE:
        raise GuardError(
            f"{type(model).__name__} is not causal: what it says of a token depends on the tokens behind it "
            f"(gradient {leak:.1g} of the largest), so it would see what it is to predict and learn to a low "
            "loss that means nothing. Give a causal student (BERT and its like are with is_decoder=True, "
            "others without use_bidirectional_attention in their configuration)"
        )
