"""The cost model, checked by hand-made sums."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.advice.cost_model import Prices, Rates, Scale, estimate, figure_by_top_k, interpolate
from benchmarks.report.results import Figure, Result

RATES = Rates(
    bytes_per_token=130.0, tokens_per_sec=20_000.0, start_sec=180.0, decode_tokens_per_sec=1e6, origin="test"
)
SCALE = Scale(
    tokens=1e12, replicas=32, devices_per_replica=2, unit_tokens=100_000, months=2, reads=3, availability=0.8
)
PRICES = Prices(
    per_device_hour=2.0, per_gb_month=0.02, per_million_puts=5.0, per_million_gets=0.4, per_gb_egress=0.01
)


def test_a_trillion_tokens_add_up() -> None:
    got = estimate(SCALE, RATES, PRICES)
    assert got.store_bytes == 130e12
    assert got.units == 10_000_000
    seconds = (1e12 / 32 + 50_000) / 20_000 + 180
    assert got.label_hours == pytest.approx(seconds / 3600 / 0.8)
    assert got.device_hours == pytest.approx(got.label_hours * 64)
    assert got.label_cost == pytest.approx(got.device_hours * 2.0)
    assert got.storage_cost == pytest.approx(130_000 * 0.02 * 2)
    assert got.request_cost == pytest.approx(10 * 2 * 5.0 + 10 * 3 * 0.4)
    assert got.read_cost == pytest.approx(130_000 * 3 * 0.01)
    assert got.total_cost == pytest.approx(
        got.label_cost + got.storage_cost + got.request_cost + got.read_cost
    )
    assert got.read_core_hours == pytest.approx(3e12 / 1e6 / 3600)


def test_one_unit_per_replica_leaves_nobody_waiting() -> None:
    even = dataclasses.replace(SCALE, tokens=3_200_000, availability=1.0)
    assert estimate(even, RATES, PRICES).label_hours * 3600 == pytest.approx(100_000 / 20_000 + 180)


@pytest.mark.parametrize("name", ["tokens", "replicas", "unit_tokens", "availability"])
def test_a_scale_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        estimate(dataclasses.replace(SCALE, **{name: 0}), RATES, PRICES)


def test_sizes_between_measured_k_follow_a_power_law() -> None:
    by_top_k = {8: 10.0, 32: 40.0, 128: 80.0}
    assert interpolate(by_top_k, 32) == 40.0
    assert interpolate(by_top_k, 16) == pytest.approx(20.0)
    assert interpolate(by_top_k, 64) == pytest.approx(40 * math.sqrt(2))
    assert interpolate(by_top_k, 512) == pytest.approx(160.0)
    assert interpolate(by_top_k, 4) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="K=16"):
        interpolate({8: 1.0}, 16)


def test_figures_are_found_by_k() -> None:
    figures = [Figure.of(name, 1.0, "B") for name in ("bytes_k8", "bytes_k128", "bytes_ids_k8", "other")]
    result = Result.of("storage", meaning="", columns=(), rows=(), figures=figures)
    assert figure_by_top_k(result, "bytes") == {8: 1.0, 128: 1.0}


@pytest.mark.parametrize("tokens", [math.inf, math.nan])
def test_a_number_of_tokens_that_is_none_is_refused_by_name(tokens: float) -> None:
    with pytest.raises(ValueError, match=r"tokens = .* must be a positive number"):
        estimate(dataclasses.replace(SCALE, tokens=tokens), RATES, PRICES)
