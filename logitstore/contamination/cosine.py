"""Texts that mean nearly the same: cosine of sentence embeddings.

The embedding is WordLlama's `l2_supercat`, 256 dimensions, MIT licensed: 16 MB that come with its package,
so nothing is loaded from a network, and no GPU is needed. The mean of a language model's own embedding table
does not do: it puts two questions about different countries nearer than a question and its paraphrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from logitstore.contamination.near import Match

DIMENSIONS = 256
CHUNK_TEXTS = 65_536
"""Kept texts that a block is compared with at once."""


class CosineTexts:
    """Kept texts by their embedding: 1 KB of memory for each. The search is exact and its time grows with the
    square of the number of texts.

    Shape legend: B texts of a block, N kept texts, D dimensions.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold`: cosine, from which on two texts are near, above 0 and at most 1."""
        import wordllama

        self._threshold = threshold
        self._model = wordllama.WordLlama.load(
            disable_download=True, cache_dir=Path(wordllama.__file__).parent
        )
        self._kept_ND = np.empty((1024, DIMENSIONS), np.float32)
        self._numbers: list[int] = []
        self._num_before = 0
        self._searched = False
        self._block_BD = np.empty((0, DIMENSIONS), np.float32)
        self._best_B = np.empty(0, np.float32)
        self._best_place_B = np.empty(0, np.int64)

    def start_block(self, texts: Sequence[str]) -> None:
        self._block_BD = np.asarray(
            self._model.embed([text.casefold() for text in texts], norm=True), np.float32
        )
        self._num_before = len(self._numbers)
        self._searched = False

    def _search(self) -> None:
        """Compare the whole block with what was kept before it, at its first question."""
        self._searched = True
        self._best_B = np.full(len(self._block_BD), -1, np.float32)
        self._best_place_B = np.zeros(len(self._block_BD), np.int64)
        for start in range(0, self._num_before, CHUNK_TEXTS):
            end = min(start + CHUNK_TEXTS, self._num_before)
            cosines_BN = self._block_BD @ self._kept_ND[start:end].T
            place_B = cosines_BN.argmax(axis=1)
            best_B = np.take_along_axis(cosines_BN, place_B[:, None], axis=1)[:, 0]
            better_B = best_B > self._best_B
            self._best_B = np.where(better_B, best_B, self._best_B)
            self._best_place_B = np.where(better_B, place_B + start, self._best_place_B)

    def nearest(self, place: int) -> Match | None:
        if not self._searched:
            self._search()
        best, best_place = float(self._best_B[place]), int(self._best_place_B[place])
        kept_of_block_ND = self._kept_ND[self._num_before : len(self._numbers)]
        if len(kept_of_block_ND):
            cosines_N = kept_of_block_ND @ self._block_BD[place]
            if cosines_N.max() > best:
                best, best_place = float(cosines_N.max()), self._num_before + int(cosines_N.argmax())
        # Two equal texts may be a rounding error short of 1.
        if best < self._threshold - 1e-6:
            return None
        return Match(self._numbers[best_place], min(best, 1.0), "cosine")

    def keep(self, place: int, number: int) -> None:
        if len(self._numbers) == len(self._kept_ND):
            self._kept_ND = np.concatenate([self._kept_ND, np.empty_like(self._kept_ND)])
        self._kept_ND[len(self._numbers)] = self._block_BD[place]
        self._numbers.append(number)
