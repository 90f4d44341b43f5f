"""Which generated responses are poor training text: dropped with a reason, or flagged in the store.

Shape legend: T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from labeler.config.loading import FiltersConfig
from labeler.worker.segmenting import Segmenter
from logitstore.records import LabeledSequence, Segment

REPETITIONS = 8
"""A loop is flagged when its period went round so often within the tokens looked at."""


@dataclass(slots=True)
class FilterOutcome:
    """What the filters left of a unit's responses."""

    kept: list[LabeledSequence] = field(default_factory=list)
    dropped: list[tuple[LabeledSequence, str, str]] = field(default_factory=list)
    """(sequence, kind, reason) of each response that is not stored."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many responses each filter found, dropped or flagged."""


def filter_responses(
    sequences: Sequence[LabeledSequence], config: FiltersConfig, segmenter: Segmenter
) -> FilterOutcome:
    """Apply the filters to generated sequences, whose parts and ends `segmenter` knows."""
    outcome = FilterOutcome()
    actions = {
        "truncated": config.truncated,
        "empty": config.empty,
        "no_answer": config.no_answer,
        "repeated": config.repeated,
        "too_short": config.length,
        "too_long": config.length,
    }
    for sequence in sequences:
        flags: list[str] = []
        drop: tuple[str, str] | None = None
        for kind, reason in _findings(sequence, config, segmenter):
            outcome.counts[kind] += 1
            if actions[kind] == "drop":
                drop = drop or (kind, reason)
            else:
                flags.append(kind)
        if drop is not None:
            outcome.dropped.append((sequence, *drop))
        else:
            outcome.kept.append(replace(sequence, flags=(*sequence.flags, *flags)) if flags else sequence)
    return outcome


def _findings(
    sequence: LabeledSequence, config: FiltersConfig, segmenter: Segmenter
) -> list[tuple[str, str]]:
    """(kind, reason) of every filter that is not switched off and that the response trips."""
    ends = segmenter.ends
    response_T = sequence.token_ids_T[sequence.prompt_length :]
    segments_T = sequence.segments_T
    is_visible_T = np.array([int(token_id) not in ends.blank_ids for token_id in response_T], bool)
    reasons_on = segments_T is not None and segmenter.reasons_to_the_end(sequence.token_ids_T, segments_T)
    if segments_T is not None and not reasons_on:
        is_visible_T &= segments_T[sequence.prompt_length :] != Segment.REASONING
    num_text = len(response_T) - (1 if len(response_T) and int(response_T[-1]) in ends.token_ids else 0)
    findings: list[tuple[str, str]] = []
    if config.truncated != "keep" and sequence.finish_reason == "length":
        findings.append(("truncated", f"the response was cut off after {num_text} tokens"))
    if config.empty != "keep" and not is_visible_T[:num_text].any():
        findings.append(("empty", "the response has no text"))
    if config.no_answer != "keep" and reasons_on:
        findings.append(("no_answer", "the response ends before its reasoning does"))
    if config.repeated != "keep":
        period = loop_period(response_T[:num_text], config.repeated_tokens)
        if period is not None:
            findings.append(("repeated", f"the response ends in a loop of {period} tokens, over and over"))
    if num_text and num_text < config.min_tokens:
        findings.append(
            ("too_short", f"the response has {num_text} tokens, filters.min_tokens is {config.min_tokens}")
        )
    if config.max_tokens is not None and num_text > config.max_tokens:
        findings.append(
            ("too_long", f"the response has {num_text} tokens, filters.max_tokens is {config.max_tokens}")
        )
    return findings


def loop_period(tokens_T: np.ndarray, num_tokens: int) -> int | None:
    """Shortest period of the last `num_tokens` tokens if `REPETITIONS` rounds of it fit; else None."""
    if len(tokens_T) < num_tokens:
        return None
    tail_T = tokens_T[-num_tokens:]
    for period in range(1, num_tokens // REPETITIONS + 1):
        if np.array_equal(tail_T[period:], tail_T[:-period]):
            return period
    return None
