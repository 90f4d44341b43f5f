"""A set of 128-bit digests in 16 bytes each, so that repeated ids are found among many millions."""

from __future__ import annotations

import hashlib

import numpy as np

DIGEST_BYTES = 16
_DTYPE = np.dtype(f"S{DIGEST_BYTES}")


def content_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


class DigestSet:
    """Digests in sorted runs whose sizes at least double, plus a small recent set.

    n members take 16 n bytes and a look-up O(log^2 n), where a Python set of bytes takes about 100 n.
    """

    def __init__(self, *, recent_limit: int = 65_536) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[np.ndarray] = []
        self._recent_limit = recent_limit

    def __len__(self) -> int:
        return len(self._recent) + sum(len(run) for run in self._runs)

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        wanted = np.array(digest, dtype=_DTYPE)
        for run in self._runs:
            position = int(np.searchsorted(run, wanted))
            if position < len(run) and run[position] == wanted:
                return True
        return False

    def add(self, digest: bytes) -> bool:
        """False if it was a member already."""
        if digest in self:
            return False
        self._recent.add(digest)
        if len(self._recent) >= self._recent_limit:
            recent = b"".join(self._recent)
            self._recent.clear()
            self.add_many(recent)
        return True

    def add_many(self, digests: bytes) -> None:
        """Add digests that stand one after another, none of them a member yet."""
        run = np.sort(np.frombuffer(digests, dtype=_DTYPE))
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
