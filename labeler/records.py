"""What actors tell the driver, and how a job can end before it is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from logitstore.manifest.fields import ShardEntry
from logitstore.records import Reject


class JobFailedError(RuntimeError):
    """The job cannot go on; the message says why and what to do."""


class ClusterLostError(JobFailedError):
    """The Ray cluster is gone: nothing can be asked of it any more, not even to end."""


class EngineDiedError(RuntimeError):
    """A worker's engine is dead for good. Every lease of the worker fails with this one cause."""

    def __init__(self, reason: str, culprits: tuple[int, ...]) -> None:
        super().__init__(reason, culprits)
        self.reason = reason
        self.culprits = culprits
        """The leases that were in the engine when it died, oldest first."""

    def __str__(self) -> str:
        return self.reason


class StoppedError(RuntimeError):
    """The job was told to stop before any engine was at work."""


class LeaseLostError(RuntimeError):
    """Another driver has taken over the store."""


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
