"""What can be said of the best of several settings that were each tried with the same few seeds.

A seed gives all settings the same new weights and the same order of reading, so settings are compared seed by
seed: by a t-test on the differences of two settings, which asks for no spread that settings share. The best
is chosen by the figures it is compared by, so that any pair might have been the one compared: each test has
the error rate divided by the number of all pairs (Bonferroni; R. G. Miller, Simultaneous Statistical
Inference, 1981). So, however many settings are equal in truth and however unlike their spreads are, any of
these is told apart from another that was chosen in at most ERROR_RATE of all sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

ERROR_RATE = 0.05
"""Share of sweeps, at most, in which any settings are told apart that are equal in truth."""

ROUNDING = 1e-9

BySeed = Mapping[Any, float]
"""A figure of one setting, by seed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best setting and those that could be as good."""

    best: str
    mean: float
    """Mean of its figure over seeds."""
    not_worse: tuple[str, ...]
    """Settings that the seeds do not tell apart from the best, best first."""
    next_best: str | None
    lead: float | None
    """By how much the best is better than the next: the mean over the seeds that both have. None where these
    are fewer than two, which tell nothing of a spread."""
    lead_spread: float | None
    """Standard deviation of that difference over these seeds."""
    num_seeds: int
    """Seeds that the best and the next have both."""


def verdict(figures: Mapping[str, BySeed], *, lower_is_better: bool) -> Verdict:
    """`figures` has at least one setting, and each at least one seed."""
    sign = 1.0 if lower_is_better else -1.0
    means = {name: mean(by_seed.values()) for name, by_seed in figures.items()}
    best, *others = sorted(means, key=lambda name: sign * means[name])
    leads = {name: _leads(figures[best], figures[name], sign) for name in others}
    num_pairs = math.comb(len(figures), 2)
    lead = leads[others[0]] if others else []
    known = len(lead) > 1
    return Verdict(
        best=best,
        mean=means[best],
        not_worse=tuple(
            name for name in others if not _is_ahead(leads[name], ERROR_RATE / max(num_pairs, 1))
        ),
        next_best=others[0] if others else None,
        lead=mean(lead) if known else None,
        lead_spread=stdev(lead) if known else None,
        num_seeds=len(lead),
    )


def _leads(best: BySeed, other: BySeed, sign: float) -> list[float]:
    """By how much the best is better, by seed that both have."""
    return [sign * (other[seed] - figure) for seed, figure in best.items() if seed in other]


def _is_ahead(leads: Sequence[float], error_rate: float) -> bool:
    """Whether a two-sided t-test says so. Differences that are the same, but for rounding, tell nothing of
    their spread."""
    if len(leads) < 2 or stdev(leads) <= ROUNDING * abs(mean(leads)):
        return False
    t = mean(leads) / stdev(leads) * math.sqrt(len(leads))
    return t > 0 and 1 - student_t_within(t, len(leads) - 1) <= error_rate


def student_t_within(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution with so many degrees of freedom (Abramowitz and Stegun, 26.7.3
    and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    for place in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= place / (place + 1) * cosine**2
    return 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
