"""What does not fit: label rows beyond a limit on length, or beyond the student's context, counted before
the first step."""

from __future__ import annotations

import warnings
from typing import Any

from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import GuardError, TrainingWarning

WARNED_SHARE = 0.01
"""Share of the label rows that may be cut off, or of an epoch left out, without a warning."""
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def student_context(model: Any) -> int | None:
    """Positions that the student has; None if its configuration names no limit."""
    config = model.config.get_text_config()
    for name in _CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def length_limit(settings: CollateSettings, context: int | None) -> int | None:
    """Tokens of a sequence that are trained on; beyond its context a student fails or learns nonsense."""
    limits = [limit for limit in (settings.token_limit, context) if limit is not None]
    return min(limits, default=None)


def check_lengths(
    dataset: StreamingLogitDataset, settings: CollateSettings, context: int | None, *, purpose: str
) -> int:
    """Label rows that are cut off, of those of the dataset.

    Raises GuardError if all are; warns above WARNED_SHARE. `purpose` says what the dataset is for.
    """
    limit = length_limit(settings, context)
    total = dataset.labels_within(None)
    lost = total - dataset.labels_within(limit)
    if not lost:
        return 0
    named = {"max_length": settings.max_length, "pack_length": settings.pack_length}
    names = [f"{name}={value}" for name, value in named.items() if value == limit]
    by = " and ".join(names) or f"the student's context of {limit} tokens"
    remedy = (
        f"raise {names[0].partition('=')[0]}"
        if names
        else "take a student with a longer context (student.small.max_positions of a fresh one)"
    )
    message = f"{lost} of {total} label rows for {purpose} lie beyond {by} and are cut off"
    if lost == total:
        raise GuardError(f"{message}: there is nothing to learn from; {remedy}")
    if lost > WARNED_SHARE * total:
        warnings.warn(
            f"{message} ({lost / total:.1%}); {remedy}, or leave it if that is meant",
            TrainingWarning,
            stacklevel=2,
        )
    return lost
