"""What checking a store found: problems, garbage, and which records have labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from logitstore.inputs.identity import digest_of
from logitstore.objects.opening import ObjectInfo

MAX_LISTED = 1000
"""Problems of one kind that are kept, of kinds that every record may have; further ones are counted."""
Progress = Callable[[str, int, int], None]
"""Called with what is going on, units done and units in all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (`severity` "error"), merely in the way ("garbage"), or
    was not looked at ("note")."""

    severity: str
    kind: str
    """A stable word to count by."""
    where: str
    """Object, unit or input line."""
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message} [{self.kind}]"


@dataclass
class LabeledIds:
    """Which records have labels: 16 bytes per sequence, so that a hundred million fit in memory."""

    digests: list[np.ndarray] = field(default_factory=list)
    """Parts of void[16] arrays: the hash of each sequence's record id."""
    samples: list[np.ndarray] = field(default_factory=list)
    """int32 sample_index, beside `digests`."""
    units: list[np.ndarray] = field(default_factory=list)
    """int64 unit_index, beside `digests`."""

    def add(self, unit_index: int, sequences: list[tuple[str, int]]) -> None:
        raw = b"".join(digest_of(record_id) for record_id, _ in sequences)
        self.digests.append(np.frombuffer(raw, "V16"))
        self.samples.append(np.array([sample for _, sample in sequences], np.int32))
        self.units.append(np.full(len(sequences), unit_index, np.int64))


@dataclass
class Findings:
    """What `verify_store` saw."""

    problems: list[Problem] = field(default_factory=list)
    garbage: list[ObjectInfo] = field(default_factory=list)
    """Objects that `repair` may remove."""
    bad_shards: set[str] = field(default_factory=set)
    """Names of committed shards that are gone, or whose bytes are not those that were committed."""
    no_shards: set[str] = field(default_factory=set)
    """Objects among the garbage that have the name of a shard and are none."""
    labeled: LabeledIds = field(default_factory=LabeledIds)
    unlisted: dict[str, int] = field(default_factory=dict)
    """By kind: errors beyond MAX_LISTED."""
    num_units: int = 0
    num_sequences: int = 0
    num_rows: int = 0
    _of_records: dict[str, int] = field(default_factory=dict)
    """By kind: errors of single records, listed or not."""

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def num_errors(self) -> int:
        """Those that are not listed included."""
        return len(self.errors) + sum(self.unlisted.values())

    def error_of_record(self, kind: str, where: str, message: str) -> None:
        """One of perhaps as many as there are records."""
        self._of_records[kind] = self._of_records.get(kind, 0) + 1
        if self._of_records[kind] <= MAX_LISTED:
            self.error(kind, where, message)
        else:
            self.unlisted[kind] = self._of_records[kind] - MAX_LISTED

    def error(self, kind: str, where: str, message: str) -> None:
        self.problems.append(Problem("error", kind, where, message))

    def note(self, kind: str, where: str, message: str) -> None:
        self.problems.append(Problem("note", kind, where, message))
