"""Label rows for people: tokens, what the teacher thought of them, and its alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.store import LogitStore

Decode = Callable[[int], str]


@dataclass(frozen=True)
class HeadRow:
    """One label row of `head`."""

    record_id: str
    sample_index: int
    position: int
    token_id: int | None
    """The token that stands at the position; None one past the end."""
    token: str
    probability: float | None
    """The probability of that token at T=1; None if unknown."""
    rank: int | None
    counts_in_loss: bool
    alternatives: list[tuple[int, str, float]]
    """(id, text, probability) of the teacher's first choices."""
    tail_mass: float
    """Outside all stored entries."""


def head_rows(
    store: LogitStore, *, num_rows: int, num_alternatives: int, temperature: float, decode: Decode
) -> Iterator[HeadRow]:
    """The first rows of the store, in order. Raises TemperatureError, UnsupportedInputError."""
    store.need_rows("`head`")
    spec = store.manifest.labels
    rows = (
        row
        for sequence in store.iter_sequences()
        for row in sequence_rows(sequence, spec, num_alternatives, temperature, decode)
    )
    return islice(rows, num_rows)


def sequence_rows(
    sequence: LabeledSequence, spec: LabelSpec, num_alternatives: int, temperature: float, decode: Decode
) -> Iterator[HeadRow]:
    rows = sequence.rows
    logprobs_NK = logprobs(rows, spec, temperature)
    log_tail_N = log_tail_mass(rows, spec, temperature)
    for index in range(rows.num_rows):
        position = sequence.label_start + index
        inside = position < len(sequence.token_ids_T)
        token_id = int(sequence.token_ids_T[position]) if inside else None
        logprob, rank = float(rows.label_logprob_N[index]), int(rows.label_rank_N[index])
        count = min(num_alternatives, int(rows.count_N[index]))
        yield HeadRow(
            record_id=sequence.record_id,
            sample_index=sequence.sample_index,
            position=position,
            token_id=token_id,
            token="" if token_id is None else decode(token_id),
            probability=math.exp(logprob) if math.isfinite(logprob) else None,
            rank=rank or None,
            counts_in_loss=bool(sequence.loss_mask_N[index]),
            alternatives=[
                (int(token), decode(int(token)), math.exp(float(value)))
                for token, value in zip(
                    rows.token_ids_NK[index, :count], logprobs_NK[index, :count], strict=True
                )
            ],
            tail_mass=math.exp(float(log_tail_N[index])),
        )
