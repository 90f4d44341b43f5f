"""What can be said of the best of several settings that were each tried with a few seeds.

The spread of seeds is taken to be the same everywhere, so that all settings tell of it together; means are
compared by Student's t with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""How sure a difference must be to be called one."""
STEPS = 400


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best setting and those that could be as good."""

    best: str
    mean: float
    """Mean of its figure over seeds."""
    spread: float | None
    """Standard deviation of a figure over seeds, from all settings; None where each has one seed."""
    not_worse: tuple[str, ...]
    """Settings that the seeds do not tell apart from the best, best first."""
    next_best: str | None
    certainty: float | None
    """That the best's mean is really better than the next one's; None where nothing tells the spread."""


def verdict(figures: Mapping[str, Sequence[float]], *, lower_is_better: bool) -> Verdict:
    """`figures` has one number per seed for each setting; there is at least one."""
    sign = 1.0 if lower_is_better else -1.0
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    order = sorted(means, key=lambda name: sign * means[name])
    best, others = order[0], order[1:]
    freedom = sum(len(values) - 1 for values in figures.values())
    if not freedom:
        return Verdict(best, means[best], None, tuple(others), others[0] if others else None, None)
    squares = sum((value - means[name]) ** 2 for name, values in figures.items() for value in values)
    spread = math.sqrt(squares / freedom)

    def sure(name: str) -> float:
        difference = sign * (means[name] - means[best])
        error = spread * math.sqrt(1 / len(figures[name]) + 1 / len(figures[best]))
        if error == 0:
            return 1.0 if difference > 0 else 0.5
        return student_t_below(difference / error, freedom)

    return Verdict(
        best=best,
        mean=means[best],
        spread=spread,
        not_worse=tuple(name for name in others if sure(name) < LEVEL),
        next_best=others[0] if others else None,
        certainty=sure(others[0]) if others else None,
    )


def student_t_below(t: float, freedom: int) -> float:
    """P(T <= t) of Student's distribution with so many degrees of freedom."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    # With t = sqrt(freedom) tan(a) the integral runs over a bounded piece: cos(a)^(freedom - 1) da.
    end = math.atan(abs(t) / math.sqrt(freedom))
    width = end / STEPS
    heights = [math.cos(step * width) ** (freedom - 1) for step in range(STEPS + 1)]
    simpson = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    share = scale * math.sqrt(freedom) * simpson * width / 3
    return 0.5 + math.copysign(min(share, 0.5), t)
