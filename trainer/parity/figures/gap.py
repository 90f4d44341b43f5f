"""The gap between two models on the same items, how sure it is, and what sharing the work would give.

Shape legend: N items, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.parity.records import Pair, Scored

RESAMPLES = 10_000
CHUNK_ITEMS = 5_000_000
"""Items that are drawn at a time."""
LEVEL = 0.95
ENOUGH = 0.95
"""How near routing is said to come: short of the teacher's score by no more than the rest of its size."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Teacher less student, both means over the same items, by their weights."""

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
    """Share of requests that go to the teacher, from 0 to 1."""
    quality: tuple[float, ...]
    """Mean score of all requests, by their weights."""
    threshold: tuple[float | None, ...]
    """A request goes to the teacher if the student's confidence is below it; None where all go."""
    higher_is_better: bool = True

    def enough(self) -> int:
        """The first place that falls short of the teacher alone by no more than ENOUGH allows."""
        allowed = (1 - ENOUGH) * abs(self.quality[-1]) + 1e-12
        return next(place for place, short in enumerate(self._short()) if short <= allowed)

    def is_student_enough(self) -> bool:
        """The student alone is no worse than the teacher."""
        return self._short()[0] <= 0

    def _short(self) -> list[float]:
        """How much worse each place is than the teacher alone."""
        sign = 1 if self.higher_is_better else -1
        return [sign * (self.quality[-1] - quality) for quality in self.quality]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gap_of(pairs: Sequence[Pair], seed: int, *, higher_is_better: bool = True) -> Gap:
    """`pairs` is not empty."""
    teacher, student = (
        _Weighed.of([one.teacher for one in pairs]),
        _Weighed.of([one.student for one in pairs]),
    )
    rng = np.random.default_rng(seed)
    gaps = []
    chunk = max(1, CHUNK_ITEMS // len(pairs))
    for start in range(0, RESAMPLES, chunk):
        drawn_RN = rng.integers(len(pairs), size=(min(chunk, RESAMPLES - start), len(pairs)))
        gaps.append(teacher.means(drawn_RN) - student.means(drawn_RN))
    low, high = np.quantile(np.concatenate(gaps), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    means = [float(one.score_N.sum() / one.weight_N.sum()) for one in (teacher, student)]
    return Gap(
        num_items=len(pairs),
        teacher=means[0],
        student=means[1],
        gap=means[0] - means[1],
        low=float(low),
        high=float(high),
        higher_is_better=higher_is_better,
    )


def routing_of(pairs: Sequence[Pair], *, higher_is_better: bool = True) -> Routing | None:
    """None where the student's confidence in an item is not known."""
    sure = [pair.student.confidence for pair in pairs]
    known_N = np.array([value for value in sure if value is not None])
    if len(known_N) < len(pairs):
        return None
    order_N = np.argsort(known_N, kind="stable")
    teacher = _Weighed.of([pairs[place].teacher for place in order_N])
    student = _Weighed.of([pairs[place].student for place in order_N])
    score = student.score_N.sum() + np.append(0.0, np.cumsum(teacher.score_N - student.score_N))
    weight = student.weight_N.sum() + np.append(0.0, np.cumsum(teacher.weight_N - student.weight_N))
    quality = score / weight
    sorted_N = known_N[order_N]
    # Items of equal confidence cannot be told apart by a threshold, so they go together.
    places = [place for place in range(len(pairs)) if place == 0 or sorted_N[place] > sorted_N[place - 1]]
    return Routing(
        share=(*(place / len(pairs) for place in places), 1.0),
        quality=(*(float(quality[place]) for place in places), float(quality[-1])),
        threshold=(*(float(sorted_N[place]) for place in places), None),
        higher_is_better=higher_is_better,
    )


@dataclass(frozen=True, slots=True)
class _Weighed:
    """One model's items."""

    score_N: np.ndarray
    """float64, times the weight."""
    weight_N: np.ndarray

    @classmethod
    def of(cls, items: Sequence[Scored]) -> _Weighed:
        weight_N = np.array([one.weight for one in items], dtype=np.float64)
        return cls(weight_N * np.array([one.score for one in items], dtype=np.float64), weight_N)

    def means(self, drawn_RN: np.ndarray) -> np.ndarray:
        """float64 [R], of the items that each resample drew."""
        return self.score_N[drawn_RN].sum(axis=1) / self.weight_N[drawn_RN].sum(axis=1)
