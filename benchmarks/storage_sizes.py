"""Bytes per label row of one source at one K, by what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.label_sources import LabelSource
from benchmarks.layouts import (
    COLUMN_PARTS,
    NEEDED_PARTS,
    PLAIN_LAYOUTS,
    Entries,
    column_bytes,
    encode_shard,
)
from logitstore.codebook_training import train_codebooks
from logitstore.codebooks import CodebookSet

MANY_ROWS = 10_000_000
"""Rows that a shared codebook set is trained for, where the store is not its only user."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """All in bytes per label row."""

    source: str
    top_k: int
    columns: dict[str, float]
    """Of a shard by what the bytes hold (`COLUMN_PARTS`), its codebooks trained on other documents."""
    alone: float
    """Ids, values and T=1 normaliser, with the codebooks trained on these rows and their file."""
    plain: dict[str, float]
    """By name of `PLAIN_LAYOUTS`."""

    @property
    def file(self) -> float:
        return sum(self.columns.values())

    @property
    def needed(self) -> float:
        """Of the shard what the plain layouts hold too: ids, values and T=1 normaliser."""
        return sum(self.columns[part] for part in NEEDED_PARTS)


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
    total: dict[str, int] = {part: 0 for part in COLUMN_PARTS}
    for fold in range(folds):
        inside = [sequence for place, sequence in enumerate(source.sequences) if place % folds == fold]
        outside = [sequence for place, sequence in enumerate(source.sequences) if place % folds != fold]
        books = train_codebooks((sequence.rows for sequence in outside), source.spec, expected_rows=MANY_ROWS)
        sizes = column_bytes(encode_shard(source.spec, inside, books), source.spec, books)
        total = {part: total[part] + sizes[part] for part in COLUMN_PARTS}
    return {part: size / source.num_rows for part, size in total.items()}
