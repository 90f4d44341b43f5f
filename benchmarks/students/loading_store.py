"""The store that `penumbra bench loading` reads: labels of a source in short sequences, repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.labels.label_sources import LabelSource
from logitstore.exchange.importing import Origin, Source, import_source
from logitstore.records import LabeledSequence, LabelRows
from logitstore.store import LogitStore

SEQUENCE_TOKENS = 256


def make_store(source: LabelSource, folder: Path, num_rows: int) -> LogitStore:
    """The source's sequences, repeated under new ids until there are enough rows.

    Each copy has its rows in another order: equal copies would compress as no labels do.
    """
    pieces = [piece for sequence in source.sequences for piece in _pieces(sequence)]
    total = sum(piece.rows.num_rows for piece in pieces)
    copies = -(-num_rows // total)
    rng = np.random.default_rng(0)
    repeated = (
        dataclasses.replace(_shuffled(piece, rng), record_id=f"{piece.record_id}-{copy}-{index}")
        for copy in range(copies)
        for index, piece in enumerate(pieces)
    )
    many = Source("npz", source.origin, source.spec, repeated, num_rows=copies * total)
    return import_source(many, str(folder), origin=Origin())


def _pieces(sequence: LabeledSequence) -> Iterator[LabeledSequence]:
    """Cuts of a sequence, each with the rows of its own tokens."""
    for start in range(0, len(sequence.token_ids_T) - 1, SEQUENCE_TOKENS):
        tokens = sequence.token_ids_T[start : start + SEQUENCE_TOKENS]
        first = max(start + 1, sequence.label_start)
        stop = max(start + len(tokens), first)
        rows = sequence.rows.slice(first - sequence.label_start, stop - sequence.label_start)
        if rows.num_rows:
            yield dataclasses.replace(
                sequence,
                token_ids_T=tokens,
                label_start=first - start,
                rows=rows,
                loss_mask_N=np.ones(rows.num_rows, dtype=bool),
            )


def _shuffled(sequence: LabeledSequence, rng: np.random.Generator) -> LabeledSequence:
    """The sequence with its labeled tokens, and their rows, in another order."""
    order_N = rng.permutation(sequence.rows.num_rows)
    rows = LabelRows(
        *(getattr(sequence.rows, field.name)[order_N] for field in dataclasses.fields(LabelRows))
    )
    tokens_T = sequence.token_ids_T.copy()
    labeled = slice(sequence.label_start, sequence.label_start + len(order_N))
    tokens_T[labeled] = tokens_T[labeled][order_N]
    return dataclasses.replace(sequence, token_ids_T=tokens_T, rows=rows)
