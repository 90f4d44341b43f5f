"""Numbers among the arguments that no training can have: refused when the arguments are made.

transformers takes a negative `save_steps` for none, `max_steps=0` for one step, and fails over others hours
later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy


@dataclass(frozen=True, slots=True)
class Amount:
    """From where on a number may be, and what to give instead of one below."""

    least: float
    remedy: str
    is_above: bool = False
    """The least itself is none."""

    def allows(self, value: float) -> bool:
        return math.isfinite(value) and (value > self.least if self.is_above else value >= self.least)


_OFF = "leave it out"
AMOUNTS: dict[str, Amount] = {
    "gradient_accumulation_steps": Amount(1, "1 steps the optimizer after each batch"),
    "chunk_rows": Amount(1, "None takes what fits the buffer of the fused loss"),
    "max_eval_sequences": Amount(1, "None takes all"),
    "save_total_limit": Amount(1, "None keeps all checkpoints, save_strategy='no' saves none"),
    "learning_rate": Amount(0, "5e-5 is transformers' default"),
    "weight_decay": Amount(0, "0 decays nothing"),
    "max_grad_norm": Amount(0, "0 does not clip"),
    "adam_beta1": Amount(0, "0.9 is the default"),
    "adam_beta2": Amount(0, "0.999 is the default"),
    "adam_epsilon": Amount(0, "1e-8 is the default"),
    "dataloader_num_workers": Amount(0, "0 reads in the training process"),
    "eval_delay": Amount(0, "0 evaluates from the first time on"),
    "warmup_steps": Amount(0, "0 begins at the highest rate"),
    "neftune_noise_alpha": Amount(0, _OFF, is_above=True),
}
"""By argument; None is allowed where it is the default."""
_INTERVALS = ("logging", "eval", "save")


def check_numbers(args: Any) -> None:
    """Raises ValueError for a text in place of a number, as YAML makes of 5e-5."""
    for name in (*AMOUNTS, "max_steps", "num_train_epochs", *(f"{name}_steps" for name in _INTERVALS)):
        value = getattr(args, name)
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(
                f"{name}={value!r} is no number; give it without quotes (in YAML 5.0e-5, not 5e-5)"
            )


def check_amounts(args: Any) -> None:
    """Raises ValueError for a number that cannot be, with what to give instead."""
    for name, amount in AMOUNTS.items():
        value = getattr(args, name)
        if value is not None and not amount.allows(value):
            than = f"above {amount.least:g}" if amount.is_above else f"at least {amount.least:g}"
            raise ValueError(f"{name}={value} must be finite and {than}; {amount.remedy}")
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(args, name) >= 1:
            raise ValueError(
                f"{name}={getattr(args, name)} must be below 1, as it is a decay; {AMOUNTS[name].remedy}"
            )
    if args.max_steps != -1 and not args.max_steps >= 1:
        raise ValueError(f"max_steps={args.max_steps} must be at least 1, or -1 to train num_train_epochs")
    if args.max_steps == -1 and not Amount(0, "", is_above=True).allows(args.num_train_epochs):
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} must be finite and above 0; without training, call "
            "evaluate() alone"
        )
    for name in _INTERVALS:
        strategy, steps = getattr(args, f"{name}_strategy"), getattr(args, f"{name}_steps")
        is_by_steps = strategy in (IntervalStrategy.STEPS, SaveStrategy.STEPS)
        if is_by_steps and steps is not None and not Amount(0, "", is_above=True).allows(steps):
            raise ValueError(
                f"{name}_steps={steps} must be finite and above 0 (below 1 it is a share of all steps); "
                f"{name}_strategy='no' is for never"
            )
