"""Texts that share most of their letters in a row: MinHash with locality-sensitive hashing.

`datasketch` finds candidates; the score is the exact Jaccard similarity of the sets of letter runs, so no
estimate decides. Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

from logitstore.contamination.near import Match
from logitstore.contamination.prompt_texts import words_of

RUN_LENGTH = 5
"""Characters of a run; words are joined by single spaces."""
NUM_PERMUTATIONS = 128
SLACK = 0.15
"""Candidates are looked for from so far below the threshold on, as the hashing misses some at its border."""


class MinHashTexts:
    """Kept texts by their runs of characters. About 3 KB of memory for a text of 50 words."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: Jaccard similarity, from which on two texts are near, above 0 and at most 1."""
        self._threshold = threshold
        self._lsh = MinHashLSH(threshold=max(threshold - SLACK, 0.05), num_perm=NUM_PERMUTATIONS)
        self._runs: dict[int, np.ndarray] = {}
        self._block_runs: list[np.ndarray] = []
        self._block: list[MinHash] = []

    def start_block(self, texts: Sequence[str]) -> None:
        runs = [runs_of(text) for text in texts]
        self._block = MinHash.bulk(runs, num_perm=NUM_PERMUTATIONS)
        self._block_runs = [np.unique(np.array([hash(run) for run in one], np.int64)) for one in runs]

    def nearest(self, place: int) -> Match | None:
        runs, best = self._block_runs[place], None
        for found in self._lsh.query(self._block[place]):
            number = int(str(found))
            score = _jaccard(runs, self._runs[number])
            if score >= self._threshold and (best is None or (score, -number) > (best.score, -best.partner)):
                best = Match(number, score, "minhash")
        return best

    def keep(self, place: int, number: int) -> None:
        self._lsh.insert(number, self._block[place])
        self._runs[number] = self._block_runs[place]


def runs_of(text: str) -> list[bytes]:
    """The distinct runs of characters of a text; a shorter text is one run."""
    plain = " ".join(words_of(text)) or text.strip()
    last = max(len(plain) - RUN_LENGTH, 0)
    return sorted({plain[start : start + RUN_LENGTH].encode() for start in range(last + 1)})


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    common = np.intersect1d(first, second, assume_unique=True).size
    return common / (first.size + second.size - common)
