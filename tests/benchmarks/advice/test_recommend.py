"""What a recommendation rests on, against sums over the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.advice.cost_model import Prices, Rates, estimate, replicas_for
from benchmarks.advice.recommend import Coverage, choose, cover
from benchmarks.jobs.made_up_labels import made_up_sequence
from benchmarks.labels.label_sources import LabelSource
from labeler.teacher.label_rows import ColumnLayout, columns_from_logits, rows_from_columns
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from tests.benchmarks.advice.test_cost_model import SCALE

V, ROWS = 64, 40


def whole_vocabulary() -> tuple[np.ndarray, LabelSource]:
    """Logits [N, V], and labels that hold all of them: no tail is left to approximate."""
    rng = np.random.default_rng(3)
    logits_NV = rng.normal(scale=3.0, size=(ROWS, V)).astype(np.float16).astype(np.float32)
    spec = LabelSpec(V, V, (1.0, 2.0), "gap_f16", "score", "all")
    layout = ColumnLayout(V, spec.temperatures)
    token_ids_T = np.arange(ROWS + 1, dtype=np.int32)
    rows = rows_from_columns(columns_from_logits(logits_NV, token_ids_T[1:], layout), layout, V)
    halves = [
        LabeledSequence(
            record_id=f"record-{start}", sample_index=0, token_ids_T=token_ids_T[: ROWS // 2 + 1], prompt_length=0,
            label_start=1, rows=type(rows)(*(getattr(rows, name)[start : start + ROWS // 2] for name in rows.__slots__)),
            loss_mask_N=np.ones(ROWS // 2, bool), finish_reason="scored",
        )
        for start in (0, ROWS // 2)
    ]  # fmt: skip
    return logits_NV, LabelSource("labeler", "made up", spec, halves)


@pytest.mark.parametrize(("top_k", "temperature"), [(4, 1.0), (4, 2.0), (16, 2.0)])
def test_coverage_is_that_of_the_whole_distribution(top_k: int, temperature: float) -> None:
    logits_NV, source = whole_vocabulary()
    scaled_NV = -np.sort(-logits_NV.astype(np.float64), axis=1) / temperature
    p_NV = np.exp(scaled_NV) / np.exp(scaled_NV).sum(axis=1, keepdims=True)
    tail_N = p_NV[:, top_k:].sum(axis=1)
    said_NV = p_NV.copy()
    said_NV[:, top_k:] = (tail_N / (V - top_k))[:, None]
    kl = (p_NV * np.log(p_NV / said_NV)).sum(axis=1).mean()

    got = cover(source, top_k, temperature)
    assert got.mass_at_temperature == pytest.approx(1 - tail_N.mean(), abs=1e-5)
    assert got.kl == pytest.approx(kl, abs=1e-4)
    assert got.renormalised == pytest.approx(-np.log(1 - tail_N).mean(), abs=1e-4)


def coverage(top_k: int, mass: float, kl: float) -> Coverage:
    return Coverage(top_k, mass, mass, kl, 0.0, 2.0 * top_k)


def test_the_smallest_k_that_suffices_is_chosen() -> None:
    measured = [
        coverage(64, 0.95, 0.1),
        coverage(8, 0.7, 0.9),
        coverage(16, 0.8, 0.3),
        coverage(32, 0.91, 0.5),
    ]
    by_kl = choose(measured, 1.0, min_mass=0.9, max_kl=0.4)
    assert (by_kl.coverage.top_k, by_kl.reaches_target) == (16, True)
    by_mass = choose(measured, 1.0, min_mass=0.9, max_kl=0.01)
    assert (by_mass.coverage.top_k, by_mass.reaches_target) == (32, True)
    none = choose(measured, 1.0, min_mass=0.99, max_kl=0.01)
    assert (none.coverage.top_k, none.reaches_target) == (64, False)
    assert "none covers 99%" in none.why


@pytest.mark.parametrize("deadline_hours", [2.0, 24.0, 1000.0])
def test_the_workers_for_a_deadline_are_the_fewest_that_meet_it(deadline_hours: float) -> None:
    rates, prices = Rates(130.0, 20_000.0, 180.0, None, "test"), Prices(0, 0, 0, 0, 0)
    replicas = replicas_for(deadline_hours, SCALE.tokens, SCALE.unit_tokens, SCALE.availability, rates)

    def hours(count: int) -> float:
        return estimate(replace(SCALE, replicas=count), rates, prices).label_hours

    assert hours(replicas) <= deadline_hours < hours(replicas - 1)


def test_a_deadline_shorter_than_the_start_is_refused() -> None:
    rates = Rates(130.0, 20_000.0, 180.0, None, "test")
    with pytest.raises(ValueError, match="no time to label"):
        replicas_for(0.01, 1e9, 65_536, 1.0, rates)


def test_a_k_that_was_not_labeled_is_refused() -> None:
    sequence = made_up_sequence("record", 4, np.random.default_rng(0))
    source = LabelSource(
        "labeler", "a store", LabelSpec(512, 8, (1.0,), "gap_f16", "score", "all"), [sequence]
    )
    assert source.cut(4).sequences[0].rows.token_ids_NK.shape == (4, 4)
    with pytest.raises(ValueError, match="8 entries per row, K=16"):
        source.cut(16)
