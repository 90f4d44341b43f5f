"""How a batch is laid out, and the names of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from logitstore.records import SEGMENT_NAMES

TEACHER_KEYS = ("teacher_token_ids", "teacher_logprobs", "teacher_tail_logprob", "teacher_mask")
LABEL_WEIGHTS = "label_weights"
"""Key of the labels' weights."""
PackedAttention = Literal["position_ids", "position_ids_one_row", "block_diagonal", "block_diagonal_additive"]
COLUMN_ALIASES: dict[str, dict[str, str]] = {
    "axolotl": {
        "teacher_token_ids": "target_token_ids",
        "teacher_logprobs": "target_logprobs",
        "teacher_mask": "target_mask",
    },
    "trl": {"teacher_token_ids": "topk_token_ids", "teacher_logprobs": "topk_logprobs"},
    "verl": {"teacher_token_ids": "teacher_topk_indices", "teacher_logprobs": "teacher_topk_logps"},
    "nemo": {"teacher_token_ids": "topk_token_ids", "teacher_logprobs": "topk_logits"},
}
"""What other trainers call our keys. Log-probabilities are logits up to a constant, which a softmax drops."""


@dataclass(frozen=True, slots=True)
class CollateSettings:
    """How a batch is laid out."""

    pad_token_id: int = 0
    """Fills `input_ids` where there is no token; never attended to."""
    temperature: float = 1.0
    """T of `teacher_logprobs` and `teacher_tail_logprob`."""
    renormalize: bool = False
    """Make `teacher_logprobs` a distribution over the stored entries alone, with an empty tail. For losses
    with tail="renormalize" or "zero": they need no normaliser, so any temperature will do."""
    with_teacher: bool = True
    """False leaves the `teacher_*` keys out, for hard labels only."""
    store_temperatures: tuple[float | None, ...] = ()
    """By store of the dataset, T of its rows instead of `temperature`; None reads no teacher's labels of it.
    Adds `loss_store`, int64 [B, T]: which store the label at a token is of, as `batch_loss` wants it for
    losses by store. Empty: `temperature` for all."""
    max_length: int | None = None
    """Tokens kept of each sequence, from its start; None keeps all."""
    pad_to_multiple_of: int = 8
    """The width of a batch is rounded up to this many tokens."""
    pack_length: int | None = None
    """None pads each sequence to a row of its own. A number packs whole sequences into rows of at most so
    many tokens; longer ones are cut to it. The rows are those of a dataset with `Packing`, or of the batch
    alone: as few as best fit needs, all about equally full."""
    packed_attention: PackedAttention | None = None
    """How a packed batch keeps documents apart. Which ways are right depends on the student's attention
    code: None leaves the choice to OfflineDistillationTrainer, which tries them; another loop gets it from
    `trainer.hf.checks.packing_check.choose_packed_attention`. "position_ids": no mask; transformers finds the
    documents where positions restart, if it is called with use_cache=False as our trainer does. It costs no
    T^2 memory, and layers with sliding windows keep them. "position_ids_one_row": the same with all rows
    laid end to end in one, as FlashAttention wants it. "block_diagonal": `attention_mask` is bool
    [B, 1, T, T], as SDPA takes it; "block_diagonal_additive": float32, 0 or the lowest number, as eager
    attention adds it."""
    ignore_index: int = -100
    """Label where no loss is counted."""
    alignment: Literal["label", "logit"] = "label"
    """"logit" moves the `teacher_*` keys one place to the left, for trainers that hold the distribution
    after token t at index t. Our own losses need "label"."""
    count_tokens: bool = False
    """Add `token_counts`, int64 [3]: tokens of sequences in the batch, places for tokens, and label rows that
    `max_length` or `pack_length` cut off. Models do not know the key; OfflineDistillationTrainer takes it."""
    student_vocab_size: int | None = None
    """Ids that the student has; a sequence with a larger one is refused by name, as looking it up would end
    in an IndexError, or on a GPU in a broken process. OfflineDistillationTrainer sets it; None leaves it
    unchecked."""
    segment_weights: Mapping[str, float] | None = None
    """Add `label_weights`, float32 [B, T]: how much each label's loss counts, by the name of its token's
    segment; one that is not named has 1. A weight of 0 masks the label. 0 where no label counts."""
    column_aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names for keys, as in COLUMN_ALIASES."""

    def __post_init__(self) -> None:
        for name in ("max_length", "pack_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None for no limit")

        for name, weight in (self.segment_weights or {}).items():
            if name not in SEGMENT_NAMES or not 0 <= weight < np.inf:
                raise ValueError(
                    f"segment_weights {name!r}: {weight} must be a finite weight from 0 on, of one of "
                    f"{', '.join(SEGMENT_NAMES)}"
                )

    @property
    def token_limit(self) -> int | None:
        limits = [limit for limit in (self.max_length, self.pack_length) if limit is not None]
        return min(limits, default=None)
