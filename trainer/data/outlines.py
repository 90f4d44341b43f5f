"""What is known of a shard's sequences before any of their labels are read.

Shape legend: S sequences of a shard that take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

CUT = "length"
"""`finish_reason` of an answer that its limit of tokens ended."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Which sequences of a shard take part (S), and how long they are. int32 [S] each, but the hashes."""

    place_S: np.ndarray
    """Place within the shard, ascending."""
    num_tokens_S: np.ndarray
    label_start_S: np.ndarray
    num_labels_S: np.ndarray
    """Label rows at tokens of the sequence; a row one past the last token is none."""
    block_S: np.ndarray
    """Block of the shard that holds it."""
    is_cut_S: np.ndarray
    """1 where the teacher's answer ended at its limit of tokens and not by itself, else 0."""
    hash_S: np.ndarray
    """uint64, `record_hash`."""
    num_deleted_elsewhere: int = field(default=0, kw_only=True)
    """Of these sequences, those whose record was deleted from a store that is read beside this one."""

    @classmethod
    def empty(cls) -> Outline:
        empty_S = np.empty(0, dtype=np.int32)
        return cls(empty_S, empty_S, empty_S, empty_S, empty_S, empty_S, empty_S.astype(np.uint64))

    def only(self, keep_S: np.ndarray) -> Outline:
        """That of the sequences for which the bool [S] is true."""
        return replace(self, **{name: column_S[keep_S] for name, column_S in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by their names."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name.endswith("_S")}

    def labels_within(self, max_tokens: int | None) -> int:
        """Label rows at the first `max_tokens` tokens of their sequence; None counts all."""
        if max_tokens is None:
            return int(self.num_labels_S.sum())
        return int(np.clip(max_tokens - self.label_start_S, 0, self.num_labels_S).sum())
