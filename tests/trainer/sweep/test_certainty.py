"""What a sweep says of its best setting is right as often as it says, whatever number of settings is tried."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trainer.sweep.certainty import ERROR_RATE, BySeed, student_t_within, verdict


def by_seed(*figures: float) -> BySeed:
    return dict(enumerate(figures))


@pytest.mark.parametrize(
    ("t", "freedom", "wanted"),
    [(2.306, 8, 0.95), (12.706, 1, 0.95), (1.86, 8, 0.9), (0.0, 3, 0.0), (2.776, 4, 0.95), (4.541, 3, 0.98)],
)
def test_students_distribution_is_that_of_the_tables(t: float, freedom: int, wanted: float) -> None:
    assert student_t_within(t, freedom) == pytest.approx(wanted, abs=2e-4)


def test_settings_are_compared_seed_by_seed() -> None:
    """Seeds differ by much more than settings, and every seed says the same of two settings."""
    seeds = (2.18, 2.38, 2.30)
    found = verdict(
        {
            "a": by_seed(*seeds),
            "b": by_seed(*(figure + lag for figure, lag in zip(seeds, (0.013, 0.014, 0.0145), strict=True))),
            "c": by_seed(*(figure + lag for figure, lag in zip(seeds, (0.2, -0.1, 0.1), strict=True))),
        },
        lower_is_better=True,
    )
    assert (found.best, found.not_worse, found.next_best, found.num_seeds) == ("a", ("c",), "b", 3)
    assert found.lead == pytest.approx(0.0138333, rel=1e-3)
    assert found.lead_spread == pytest.approx(0.0007638, rel=1e-3)


def test_what_tells_nothing_of_the_spread_tells_nothing_apart() -> None:
    """One seed, seeds of which the other runs failed, and differences that are all one number."""
    assert verdict({"a": by_seed(0.1), "b": by_seed(0.3)}, lower_is_better=False).best == "b"
    alone = verdict({"a": by_seed(0.1), "b": by_seed(0.3)}, lower_is_better=True)
    assert (alone.best, alone.lead, alone.not_worse) == ("a", None, ("b",))
    apart = verdict({"a": {0: 0.1, 1: 0.12, 2: 0.11}, "b": {2: 0.3, 3: 0.31}}, lower_is_better=True)
    assert (apart.num_seeds, apart.lead, apart.not_worse) == (1, None, ("b",))
    same = verdict({"a": by_seed(0.3, 0.4), "b": by_seed(0.2, 0.3)}, lower_is_better=False)
    assert (same.best, same.not_worse) == ("a", ("b",))
    assert same.lead == pytest.approx(0.1)
    assert verdict({"a": by_seed(0.1, 0.2)}, lower_is_better=True).next_best is None


def equal_spreads(rng: np.random.Generator, num_settings: int) -> np.ndarray:
    return rng.normal(size=(num_settings, 3)) + 3 * rng.normal(size=3)


def unequal_spreads(rng: np.random.Generator, num_settings: int) -> np.ndarray:
    return rng.normal(size=(num_settings, 3)) * np.linspace(0.1, 3, num_settings)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "num_settings"),
    [*((equal_spreads, number) for number in (2, 4, 8, 16)), (unequal_spreads, 2), (unequal_spreads, 8)],
)
def test_settings_that_are_equal_are_hardly_ever_told_apart(
    draw: Callable[[np.random.Generator, int], np.ndarray], num_settings: int
) -> None:
    """With three seeds the best of 16 was told apart from some other in 94 sweeps of 100."""
    rng, num_sweeps, wrong = np.random.default_rng(0), 400, 0
    for _ in range(num_sweeps):
        figures = {str(place): by_seed(*row) for place, row in enumerate(draw(rng, num_settings).tolist())}
        wrong += len(verdict(figures, lower_is_better=True).not_worse) < num_settings - 1
    sampling_error = (ERROR_RATE * (1 - ERROR_RATE) / num_sweeps) ** 0.5
    assert wrong / num_sweeps <= ERROR_RATE + 2 * sampling_error


def test_what_differs_is_told_apart_with_more_seeds() -> None:
    """Eight settings behind by one spread each, eight seeds."""
    rng, ahead = np.random.default_rng(0), 0
    for _ in range(20):
        figures = {str(place): by_seed(*rng.normal(place, 0.5, 8).tolist()) for place in range(8)}
        found = verdict(figures, lower_is_better=True)
        assert found.best in ("0", "1")
        ahead += len(found.not_worse) <= 2
    assert ahead >= 18
