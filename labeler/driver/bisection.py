"""Finding the record of a unit that kills engines, by labeling halves for trial.

Pure: positions in, positions out. Each trial may cost an engine, so a unit of n records costs at most
about log2(n) + 1 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
