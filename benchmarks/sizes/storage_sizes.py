"""Bytes per label row of one source at one K, by what they hold, and by the number of codebooks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.labels.label_sources import LabelSource
from benchmarks.sizes.layouts import (
    COLUMN_PARTS,
    NEEDED_PARTS,
    PLAIN_LAYOUTS,
    Entries,
    column_bytes,
    encode_shard,
)
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet

MANY_ROWS = 10_000_000
"""Rows that a shared codebook set is trained for, where the store is not its only user."""


CODEBOOK_NUMBERS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Sizes:
    """All in bytes per label row."""

    source: str
    top_k: int
    columns: dict[str, float]
    """Bytes of a shard by what they hold (`COLUMN_PARTS`), its codebooks trained on other documents."""
    alone: float
    """Ids, values and T=1 normaliser, with the codebooks trained on these rows and their file."""
    plain: dict[str, float]
    """By name of `PLAIN_LAYOUTS`."""

    @property
    def file(self) -> float:
        return sum(self.columns.values())

    @property
    def needed(self) -> float:
        """The part of the shard that the plain layouts hold too: ids, values and T=1 normaliser."""
        return sum(self.columns[part] for part in NEEDED_PARTS)


@dataclass(frozen=True, slots=True)
class CodebookPoint:
    """What so many codebooks are worth to documents that they were not trained on."""

    num_codebooks: int
    train_sec: float
    bytes_per_token: float


def measure_sizes(source: LabelSource, own_books: CodebookSet, folds: int) -> Sizes:
    own = column_bytes(encode_shard(source.spec, source.sequences, own_books), source.spec, own_books)
    entries, num_rows = Entries.of(source.sequences), source.num_rows
    return Sizes(
        source=source.name,
        top_k=source.spec.top_k,
        columns=columns_on_others(source, folds),
        alone=(sum(own[part] for part in NEEDED_PARTS) + len(own_books.to_bytes())) / num_rows,
        plain={layout.name: layout.num_bytes(entries) / num_rows for layout in PLAIN_LAYOUTS},
    )


def columns_on_others(source: LabelSource, folds: int) -> dict[str, float]:
    """Bytes per row by part; each fold of the documents is coded with codebooks of the other folds."""
    total: dict[str, int] = dict.fromkeys(COLUMN_PARTS, 0)
    for fold in range(folds):
        inside = [sequence for place, sequence in enumerate(source.sequences) if place % folds == fold]
        outside = [sequence for place, sequence in enumerate(source.sequences) if place % folds != fold]
        books = train_codebooks((sequence.rows for sequence in outside), source.spec, expected_rows=MANY_ROWS)
        sizes = column_bytes(encode_shard(source.spec, inside, books), source.spec, books)
        total = {part: total[part] + sizes[part] for part in COLUMN_PARTS}
    return {part: size / source.num_rows for part, size in total.items()}


def codebook_curve(source: LabelSource) -> list[CodebookPoint]:
    """Trained on half of the documents, measured on the other half."""
    points = []
    held_out = source.sequences[1::2]
    num_rows = sum(sequence.rows.num_rows for sequence in held_out)
    for number in CODEBOOK_NUMBERS:
        start = time.perf_counter()
        books = train_codebooks(
            (sequence.rows for sequence in source.sequences[::2]),
            source.spec,
            max_codebooks=number,
            expected_rows=MANY_ROWS,
        )
        seconds = time.perf_counter() - start
        if points and books.num_codebooks <= points[-1].num_codebooks:
            break  # more do not pay for themselves on so few rows
        sizes = column_bytes(encode_shard(source.spec, held_out, books), source.spec, books)
        needed = sum(sizes[part] for part in NEEDED_PARTS)
        points.append(CodebookPoint(books.num_codebooks, seconds, needed / num_rows))
    return points
