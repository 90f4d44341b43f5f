"""What actors tell the driver, and how a job can end before it is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from logitstore.manifest.fields import ShardEntry
from logitstore.records import Reject


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of a lease."""

    lease_id: int
    outcome: str
    """"committed", "passed_trial" or "gave_back"."""
    entry: ShardEntry | None = None
    """The row that counts for the unit, whoever wrote it."""
    won: bool = False
    """Whether this lease's shard is the one that counts."""
    rejects: tuple[Reject, ...] = ()
    """Records of the unit without labels."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Responses that each filter found, dropped or flagged."""
    engine_sec: float = 0.0
    """Time in the engine."""
    own_sec: float = 0.0
    """Time reading, filtering, writing and committing."""

    @property
    def rejects_by_kind(self) -> Counter[str]:
        return Counter(reject.kind for reject in self.rejects)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life."""

    progress: int
    """Grows whenever a sequence is labeled or a step of a unit is done."""
    in_engine: tuple[int, ...]
    """The leases that the engine is labeling, oldest first; to be suspected should the process die now."""
    buffered_bytes: int
    """Labels waiting to be written."""
    num_sequences: int
    num_tokens: int
    """Sequences and tokens labeled since the start, whether committed by now or not."""
