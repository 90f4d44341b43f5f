"""The gap between two models on the same items, how sure it is, and what sharing the work would give.

Shape legend: N items, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.parity.records import Pair

RESAMPLES = 10_000
CHUNK = 500
LEVEL = 0.95
ENOUGH = 0.95
"""How near routing is said to come: short of the teacher's score by no more than the rest of its size."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Teacher less student, both means over the same items."""

    num_items: int
    teacher: float
    student: float
    gap: float
    low: float
    """The interval in which the gap lies at LEVEL: percentiles of a bootstrap over items, which keeps each
    item's two scores together."""
    high: float
    higher_is_better: bool = True
    """Else a teacher that is ahead makes the gap negative."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What the quality is if the requests of which the student is least sure go to the teacher.

    The threshold is chosen and judged on the same items.
    """

    share: tuple[float, ...]
    """Of requests that go to the teacher, from 0 to 1."""
    quality: tuple[float, ...]
    """Mean score of all requests."""
    threshold: tuple[float | None, ...]
    """A request goes to the teacher if the student's confidence is below it; None where all go."""

    def enough(self) -> int:
        """The first place whose quality is as near to the teacher's alone as ENOUGH says."""
        goal = self.quality[-1] - (1 - ENOUGH) * abs(self.quality[-1])
        return next(place for place, quality in enumerate(self.quality) if quality >= goal - 1e-12)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gap_of(pairs: Sequence[Pair], seed: int, *, higher_is_better: bool = True) -> Gap:
    """`pairs` is not empty."""
    teacher_N = np.array([pair.teacher.score for pair in pairs], dtype=np.float64)
    student_N = np.array([pair.student.score for pair in pairs], dtype=np.float64)
    difference_N, rng = teacher_N - student_N, np.random.default_rng(seed)
    gaps_R = np.concatenate(
        [
            difference_N[rng.integers(len(pairs), size=(CHUNK, len(pairs)))].mean(axis=1)
            for _ in range(RESAMPLES // CHUNK)
        ]
    )
    low, high = np.quantile(gaps_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gap(
        num_items=len(pairs),
        teacher=float(teacher_N.mean()),
        student=float(student_N.mean()),
        gap=float(difference_N.mean()),
        low=float(low),
        high=float(high),
        higher_is_better=higher_is_better,
    )


def routing_of(pairs: Sequence[Pair]) -> Routing | None:
    """None where the student's confidence in an item is not known."""
    sure = [pair.student.confidence for pair in pairs]
    known_N = np.array([value for value in sure if value is not None])
    if len(known_N) < len(pairs):
        return None
    order_N = np.argsort(known_N, kind="stable")
    teacher_N = np.array([pair.teacher.score for pair in pairs])[order_N]
    student_N = np.array([pair.student.score for pair in pairs])[order_N]
    gained = np.concatenate([[0.0], np.cumsum(teacher_N - student_N)])
    quality = (student_N.sum() + gained) / len(pairs)
    sorted_N = known_N[order_N]
    # Items of equal confidence cannot be told apart by a threshold, so they go together.
    places = [place for place in range(len(pairs)) if place == 0 or sorted_N[place] > sorted_N[place - 1]]
    return Routing(
        share=(*(place / len(pairs) for place in places), 1.0),
        quality=(*(float(quality[place]) for place in places), float(quality[-1])),
        threshold=(*(float(sorted_N[place]) for place in places), None),
    )
