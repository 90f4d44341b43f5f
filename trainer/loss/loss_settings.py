"""What loss to compute. Without torch, so that a configuration can be checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Divergence = Literal["generalized_jsd", "total_variation", "sampled"]
Tail = Literal["bucket", "renormalize", "zero", "uniform"]
ForeignIds = Literal["error", "tail"]


MAX_TEMPERATURE = 1000.0
"""At 1,000 rounding in float32 is some percent of the loss, at 10,000 it is larger than the loss."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What loss to compute. Impossible combinations are refused here, before any training step."""

    temperature: float = 1.0
    """T of the softmax of teacher and student in the distillation term. The targets must already be at it."""
    alpha: float = 0.5
    """Weight of distillation, 1 - alpha that of cross-entropy (always at T=1). 0 needs no teacher."""
    beta: float = 0.0
    """0 is KL(teacher || student), 1 is KL(student || teacher), between them
    beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. Only for "generalized_jsd"."""
    divergence: Divergence = "generalized_jsd"
    """"sampled" is the weighted cross-entropy -sum w log q of entries drawn from the teacher, with
    `logprobs` = log(count / draws); it is unbiased and has no tail."""
    tail: Tail = "bucket"
    """What becomes of the vocabulary outside the stored entries S. "bucket": one class with the exact mass.
    "renormalize": both sides are renormalised over S. "zero": the teacher is renormalised over S, the
    student is not. "uniform": the teacher's tail mass lies evenly on the ids outside S."""
    vocab_size: int | None = None
    """Columns of the student's head that are real; the padding beyond takes no probability. None: all."""
    foreign_ids: ForeignIds = "error"
    """Stored ids the student does not have: "error" refuses them, "tail" moves their mass to the tail."""
    scale_by_temperature_squared: bool = True
    """Multiply the distillation term by T^2, so that its gradient keeps its size when T grows."""
    ignore_index: int = -100
    """Labels with this value do not count."""

    def __post_init__(self) -> None:
        for name, choices in (("divergence", Divergence), ("tail", Tail), ("foreign_ids", ForeignIds)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {get_args(choices)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature} must be positive and finite; 1.0 is the default."
            )
        if self.temperature > MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={self.temperature:g} is above {MAX_TEMPERATURE:g}: so far up both are "
                "even but for what float32 rounds away, and T^2 makes the loss of that rounding; take a "
                "lower one (from about 50 on the loss hardly changes with it)"
            )
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(
                f"vocab_size={self.vocab_size} must be at least 1, or None for the head's width."
            )
        self._check_combination()

    @property
    def has_tail(self) -> bool:
        """Whether the teacher's mass outside the stored entries takes part. Without it, targets may be a
        distribution over the entries alone, of which that mass is not known."""
        return self.divergence != "sampled" and self.tail in ("bucket", "uniform")

    def _check_combination(self) -> None:
        if self.beta and self.divergence != "generalized_jsd":
            raise ValueError(f"beta={self.beta} means nothing to divergence={self.divergence!r}; set beta=0.")
        if self.tail == "zero" and self.beta == 1:
            raise ValueError(
                "tail='zero' with beta=1 is infinite: the student has mass where the teacher has none. "
                "Use tail='bucket'."
            )
        if self.tail == "uniform" and (self.beta or self.divergence != "generalized_jsd"):
            raise ValueError(
                "tail='uniform' is defined for the forward KL only; set beta=0 or tail='bucket'."
            )
        if self.divergence == "sampled" and self.tail != "bucket":
            raise ValueError(f"divergence='sampled' has no tail; leave tail at 'bucket', not {self.tail!r}.")
