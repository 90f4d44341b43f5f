"""What goes wrong with a unit; the record of it that kills engines is found by labeling halves for trial.

Pure: positions in, positions out. Each trial may cost an engine, so a unit of n records costs at most
about log2(n) + 1 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from labeler.records import WorkUnit


@dataclass(frozen=True, slots=True)
class Bisection:
    """The suspects that are left, and whether the last one is proved guilty or cleared."""

    suspects: tuple[int, ...]
    """Positions within the unit; the killer is among them unless the deaths were no record's fault."""
    convicted: bool = False
    cleared: bool = False
    """The last suspect passed its trial alone: nothing of the unit kills an engine by itself."""

    @classmethod
    def of(cls, positions: Sequence[int]) -> Bisection:
        """All positions suspect, for a unit that has killed engines as a whole."""
        return cls(tuple(positions))

    @property
    def trial(self) -> tuple[int, ...]:
        """What to label next, for its outcome only: the first half of the suspects, or the last one."""
        return self.suspects[: max(len(self.suspects) // 2, 1)]

    def after(self, *, died: bool) -> Bisection:
        """The suspects once the trial has killed an engine or has passed."""
        if died:
            return Bisection(self.trial, convicted=len(self.trial) == 1)
        if len(self.suspects) == 1:
            return Bisection(self.suspects, cleared=True)
        return Bisection(self.suspects[len(self.trial) :])


@dataclass(slots=True)
class Trouble:
    """What went wrong with a unit so far."""

    kills: int = 0
    errors: int = 0
    fruitless_bisections: int = 0
    not_before_sec: float = 0.0
    last_reason: str = ""
    bisection: Bisection | None = None
    skip: list[tuple[int, str]] = field(default_factory=list)

    @property
    def is_suspect(self) -> bool:
        return self.kills > 0 or self.bisection is not None


@dataclass(frozen=True, slots=True)
class FailedUnit:
    """A unit that the job gives up; the next run of the job tries it again."""

    unit: WorkUnit
    reason: str
