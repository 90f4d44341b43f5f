"""Training of a codebook set: a hard mixture of unigrams over label rows.

Rows are assigned to the codebook that codes their ids in the fewest bits, the codebooks' id counts are
taken again, and so on (hard expectation maximisation). The number of codebooks, the length of their
heads and of the global order are chosen by description length: coded ids plus the codebook file.

Shape legend: C codebooks, H head length, V vocabulary, U ids seen, N label rows, K stored entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from logitstore.codec.bytecodes import split_integers
from logitstore.codec.codebooks import (
    BAND,
    FILE_THRESHOLD,
    MAX_CODEBOOKS,
    CodebookSet,
    complete_order,
    identity_codebook,
    sort_in_bands,
)
from logitstore.codec.loops import WIDE_CLASS
from logitstore.codec.writing_loops import NUMPY_WRITING, cheapest_codebook
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.shard.schema import rank_groups

MAX_TRAINING_ROWS = 32_768
MAX_SCANNED_ROWS = 1 << 20
MAX_TRAINING_RANKS = 128
"""Entries of a row beyond these only count towards the global order."""
ASSIGN_RANKS = 32
"""Entries by which a row is assigned; the writer chooses by CHOICE_RANKS of them, twice as many."""
SMOOTHING_COUNTS = 1000.0
"""Weight of the global distribution in each codebook, in counts."""
SEED_COUNTS = 20.0
"""Weight of the row that seeds a codebook, in counts per id."""
MAX_ROUNDS = 15
STEADY_SHARE = 0.005
"""Rounds stop when fewer rows than this change their codebook."""

_HEAD_LENGTHS = tuple(FILE_THRESHOLD + BAND * bands for bands in (1, 2, 4, 8, 16))
_GLOBAL_LENGTHS = (FILE_THRESHOLD, 1024, 4096, 8192, 16384, 1 << 20)


def train_codebooks(
    rows: Iterable[LabelRows],
    labels: LabelSpec,
    *,
    max_codebooks: int = 64,
    seed: int = 0,
    expected_rows: int | None = None,
) -> CodebookSet:
    """The codebook set that codes `rows` in the fewest bits, its own file included.

    `expected_rows` is the number of rows that the set will serve (default: those given); the more, the
    more codebooks pay for themselves. At most MAX_SCANNED_ROWS are looked at and an even sample of
    MAX_TRAINING_ROWS kept, so time and memory are bounded. The result depends only on the arguments.

    Raises:
        InvalidLabelsError: `max_codebooks` is outside 1..256, or ids lie outside the vocabulary.
    """
    if not 1 <= max_codebooks <= MAX_CODEBOOKS:
        raise InvalidLabelsError(f"max_codebooks {max_codebooks}; the format wants 1..{MAX_CODEBOOKS}")
    sample = _sample_rows(rows, labels)
    num_rows = sample.ids_NK.shape[0]
    if num_rows == 0:
        return identity_codebook(labels.vocab_size)
    scale = max(1.0, (expected_rows or sample.num_scanned) / num_rows)
    order = np.argsort(-sample.count_V, kind="stable").astype(np.int32)
    order = order[: int(np.count_nonzero(sample.count_V))]
    best, best_bytes = _best_global(sample, order, labels, scale)
    mixture = _Mixture.of(sample)
    num_codebooks = 4
    while num_codebooks <= max_codebooks:
        heads = mixture.fit(num_codebooks, seed)
        candidates = [
            _build(order, best.global_length, heads[:, :length], labels) for length in _HEAD_LENGTHS
        ]
        sizes = [_description_bytes(books, sample, scale) for books in candidates]
        size, books = min(sizes), candidates[int(np.argmin(sizes))]
        if size >= best_bytes:
            break
        best, best_bytes = books, size
        num_codebooks *= 2
    return best


@dataclass(frozen=True)
class _Sample:
    """Rows to train on."""

    ids_NK: np.ndarray
    """int32, at most MAX_TRAINING_RANKS wide."""
    real_NK: np.ndarray
    count_V: np.ndarray
    """int64, how often the scanned rows hold each id."""
    num_scanned: int


def _sample_rows(rows: Iterable[LabelRows], labels: LabelSpec) -> _Sample:
    """Every s-th row, s doubling whenever twice MAX_TRAINING_ROWS are held."""
    width = min(labels.top_k, MAX_TRAINING_RANKS)
    count_V = np.zeros(labels.vocab_size, np.int64)
    kept: list[np.ndarray] = []
    num_kept = num_scanned = 0
    stride = 1
    for part in rows:
        real_NK = np.arange(part.token_ids_NK.shape[1])[None, :] < part.count_N[:, None]
        ids = part.token_ids_NK[real_NK]
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < labels.vocab_size:
            raise InvalidLabelsError(
                f"ids {ids.min()}..{ids.max()}; the format wants 0..{labels.vocab_size - 1}"
            )
        count_V += np.bincount(ids, minlength=labels.vocab_size)
        ids_NK = np.full((part.num_rows, width), -1, np.int32)
        inside = min(width, part.token_ids_NK.shape[1])
        ids_NK[:, :inside] = np.where(real_NK, part.token_ids_NK, -1)[:, :inside]
        kept.append(ids_NK[-num_scanned % stride :: stride])
        num_kept += len(kept[-1])
        num_scanned += part.num_rows
        while num_kept > 2 * MAX_TRAINING_ROWS:
            kept = [np.concatenate(kept)[::2]]
            num_kept = len(kept[0])
            stride *= 2
        if num_scanned >= MAX_SCANNED_ROWS:
            break
    ids_NK = np.concatenate(kept) if kept else np.zeros((0, width), np.int32)
    if num_kept > MAX_TRAINING_ROWS:
        ids_NK = ids_NK[::2]
    return _Sample(np.maximum(ids_NK, 0), ids_NK >= 0, count_V, num_scanned)


@dataclass(frozen=True)
class _Mixture:
    """Hard mixture of unigrams over a sample."""

    inverse_NK: np.ndarray
    """int32, index of each entry's id among those seen; U for padding."""
    seen_U: np.ndarray
    share_U: np.ndarray

    @classmethod
    def of(cls, sample: _Sample) -> _Mixture:
        seen_U, inverse = np.unique(sample.ids_NK[sample.real_NK], return_inverse=True)
        inverse_NK = np.full(sample.ids_NK.shape, seen_U.size, np.int32)
        inverse_NK[sample.real_NK] = inverse
        counts = np.bincount(inverse, minlength=seen_U.size)
        return cls(inverse_NK, seen_U, counts / counts.sum())

    def fit(self, num_codebooks: int, seed: int) -> np.ndarray:
        """int32 [C, H]: ids of each codebook by falling probability, H the longest head length or U."""
        num_rows = self.inverse_NK.shape[0]
        generator = np.random.default_rng(seed)
        seeds = generator.choice(num_rows, num_codebooks, replace=num_rows < num_codebooks)
        counts_CU = SEED_COUNTS * self._counts(
            np.arange(num_codebooks), self.inverse_NK[seeds], num_codebooks
        )
        choice_N = np.full(num_rows, -1)
        for _ in range(MAX_ROUNDS):
            previous_N = choice_N
            choice_N = self._assign(self._shares(counts_CU))
            counts_CU = self._counts(choice_N, self.inverse_NK, num_codebooks)
            if np.count_nonzero(choice_N != previous_N) < STEADY_SHARE * num_rows:
                break
        length = min(_HEAD_LENGTHS[-1], self.seen_U.size)
        likeliest_CH = [largest(share_U, length) for share_U in self._shares(counts_CU)]
        return self.seen_U[np.stack(likeliest_CH)].astype(np.int32)

    def _shares(self, counts_CU: np.ndarray) -> np.ndarray:
        shares_CU = counts_CU + SMOOTHING_COUNTS * self.share_U
        shares_CU /= counts_CU.sum(axis=1, keepdims=True) + SMOOTHING_COUNTS
        return shares_CU

    def _counts(self, choice_N: np.ndarray, inverse_NK: np.ndarray, num_codebooks: int) -> np.ndarray:
        width = self.seen_U.size + 1  # the last column takes the padding
        flat = choice_N[:, None].astype(np.int64) * width + inverse_NK
        counts = np.bincount(flat.reshape(-1), minlength=num_codebooks * width)
        return counts.reshape(num_codebooks, width)[:, :-1].astype(np.float64)

    def _assign(self, shares_CU: np.ndarray) -> np.ndarray:
        """uint8 [N]: the codebook with the fewest bits for each row's first entries. Overwrites shares."""
        bits_UC = np.zeros((self.seen_U.size + 1, len(shares_CU)), np.float32)
        np.negative(np.log2(shares_CU, out=shares_CU).T, out=bits_UC[:-1], casting="same_kind")
        return cheapest_codebook(self.inverse_NK[:, :ASSIGN_RANKS], bits_UC)


def largest(share_U: np.ndarray, length: int) -> np.ndarray:
    """Places of the `length` largest, falling, equal ones in their order: a stable sort's first ones."""
    if length >= share_U.size:
        return np.argsort(-share_U, kind="stable")
    least = np.partition(share_U, share_U.size - length)[share_U.size - length]
    places = np.flatnonzero(share_U >= least)
    return places[np.argsort(-share_U[places], kind="stable")[:length]]


def _build(order: np.ndarray, global_length: int, heads_CH: np.ndarray, labels: LabelSpec) -> CodebookSet:
    """A set in canonical form: bands ascending, the unlisted ids at the end."""
    head_length = heads_CH.shape[1]
    listed = sort_in_bands(order[None, :global_length], head_length)[0]
    complete = complete_order(listed, labels.vocab_size)
    rank_V = np.empty(labels.vocab_size, np.int32)
    rank_V[complete] = np.arange(labels.vocab_size, dtype=np.int32)
    ranks_CH = sort_in_bands(rank_V[heads_CH], 0)
    return CodebookSet(complete, complete[ranks_CH], len(listed))


def _best_global(
    sample: _Sample, order: np.ndarray, labels: LabelSpec, scale: float
) -> tuple[CodebookSet, float]:
    """The global order alone, listed as far as that pays."""
    heads = np.zeros((1, 0), np.int32)
    lengths = sorted({min(length, len(order)) for length in _GLOBAL_LENGTHS})
    books = [_build(order, length, heads, labels) for length in lengths]
    sizes = [_description_bytes(candidate, sample, scale) for candidate in books]
    return books[int(np.argmin(sizes))], min(sizes)


def _description_bytes(books: CodebookSet, sample: _Sample, scale: float) -> float:
    """Bytes of the coded ids (order-0 class entropy by rank group, low bytes, choices) and of the file."""
    count_N = sample.real_NK.sum(axis=1, dtype=np.int32)
    choice_N = books.choose(sample.ids_NK, np.minimum(count_N, ASSIGN_RANKS), NUMPY_WRITING)
    positions_NK = books.positions(sample.ids_NK, count_N, choice_N, NUMPY_WRITING)
    classes_NK = split_integers(positions_NK.reshape(-1), FILE_THRESHOLD)[0].reshape(positions_NK.shape)
    num_bytes = _entropy_bytes(choice_N)
    for start, end in rank_groups(sample.ids_NK.shape[1]):
        classes = classes_NK[:, start:end][sample.real_NK[:, start:end]]
        num_wide = int(np.count_nonzero(classes >= WIDE_CLASS))
        num_bytes += _entropy_bytes(classes) + np.count_nonzero(classes >= FILE_THRESHOLD) + num_wide
    return scale * num_bytes + len(books.to_bytes())


def _entropy_bytes(symbols: np.ndarray) -> float:
    """Order-0 entropy of all symbols together, in bytes."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(1, counts.sum()))).sum() / 8)
