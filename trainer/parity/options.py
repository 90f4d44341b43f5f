"""What the command line of `penumbra train parity` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.parity.records import MatchKind


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """Each as its option in `trainer.parity.arguments` says."""

    student: str
    teacher: str
    tasks: tuple[str, ...]
    out: Path
    labels: tuple[str, ...]
    unchecked: bool
    match: MatchKind
    regex: str | None
    judge: str | None
    prompt_field: str | None
    answer_field: str | None
    limit: int | None
    max_tokens: int | None
    """Most tokens of an answer; None takes what a task of lm-eval sets itself, else MAX_TOKENS."""
    num_fewshot: int | None
    batch_size: int
    seed: int
    quiet: bool
