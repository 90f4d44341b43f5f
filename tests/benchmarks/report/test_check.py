"""The regression guard: what counts as a loss, what as noise, and what may not be compared."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.__main__ import main
from benchmarks.report.check import compare_figures, compare_results
from benchmarks.report.results import Better, Figure, Result


def figure(value: float, *, spread: float = 0.0, better: Better = "lower", is_ratio: bool = True) -> Figure:
    return Figure("f", value, "", 3, spread, is_ratio, better)


def result(*figures: Figure) -> dict[str, Result]:
    return {"storage": Result.of("storage", meaning="", columns=(), rows=(), figures=figures)}


@pytest.mark.parametrize(
    ("better", "value", "loss", "failed"),
    [
        ("lower", 114.0, 0.14, False),
        ("lower", 116.0, 0.16, True),
        ("lower", 50.0, -0.5, False),
        ("higher", 86.0, 0.14, False),
        ("higher", 84.0, 0.16, True),
        ("higher", 200.0, -1.0, False),
    ],
)
def test_fifteen_percent_in_the_bad_direction_fail(
    better: Better, value: float, loss: float, failed: bool
) -> None:
    got = compare_figures(figure(100.0, better=better), [figure(value, better=better)], "storage")
    assert got.loss == pytest.approx(loss)
    assert got.failed is failed


def test_noise_of_both_measurements_is_allowed_for() -> None:
    reference, now = figure(100.0, spread=8.0), figure(118.0, spread=6.0)
    got = compare_figures(reference, [now], "storage")
    assert got.noise == pytest.approx(0.05)
    assert not got.failed
    assert compare_figures(reference, [figure(121.0, spread=6.0)], "storage").failed


def test_the_median_of_the_attempts_counts() -> None:
    attempts = [figure(130.0), figure(101.0), figure(99.0)]
    assert compare_figures(figure(100.0), attempts, "storage").value == 101.0


def test_a_reference_of_zero_allows_only_zero() -> None:
    assert not compare_figures(figure(0.0), [figure(0.0)], "storage").failed
    assert compare_figures(figure(0.0), [figure(0.1)], "storage").loss == math.inf


def test_what_rounding_does_to_a_tiny_error_is_no_loss() -> None:
    reference = Figure("kl", 3e-14, "nats", 1, 0.0, True, "lower")
    assert compare_figures(reference, [replace(reference, value=9e-7)], "storage").loss == 0
    assert compare_figures(reference, [replace(reference, value=2e-6)], "storage").failed
    bytes_per_token = figure(131.0)
    assert compare_figures(bytes_per_token, [figure(131.0 + 1e-7)], "storage").loss > 0


def test_rates_are_not_compared_and_missing_figures_are_lost() -> None:
    reference = result(figure(100.0), Figure("rate", 5.0, "tokens/s", 1, 0.0, False, "higher"))
    (compared,) = compare_results(reference, [result(figure(100.0))])
    assert not compared.failed
    (lost,) = compare_results(reference, [result(Figure("other", 1.0, "", 1, 0.0, True, "lower"))])
    assert lost.failed
    (unmeasured,) = compare_results(reference, [{}])
    assert unmeasured.failed


def test_a_part_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It was left out in silence, and alone said that the folder had no results."""
    assert main(["check", "--parts", "decode,decod"]) == 2
    assert "--parts decod: " in capsys.readouterr().err
