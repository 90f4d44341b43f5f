"""Tail masses and log-probabilities at stored, interpolated and refused temperatures.

Shape legend: N label rows, K stored entries, M temperatures, V vocabulary.
"""

import io
from dataclasses import replace

import numpy as np
import pytest

from logitstore.errors import TemperatureError
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import log_tail_mass, logprobs, tail_sum_polynomial, truncate
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture


def whole_vocabulary(num_rows=200, vocab_size=5000, seed=0):
    """float64 [N, V] descending logits with a tail like a language model's."""
    generator = np.random.default_rng(seed)
    logits_NV = generator.normal(0, 2.5, (num_rows, vocab_size)) - 2.2 * np.log1p(np.arange(vocab_size))
    return -np.sort(-logits_NV, axis=1)


def top_rows(logits_NV, top_k, temperatures):
    """Label rows of known distributions."""
    num_rows = len(logits_NV)
    logsumexp_NM, tail_NM = [], []
    for temperature in temperatures:
        scaled = logits_NV / temperature
        total = np.log(np.exp(scaled).sum(axis=1))
        logsumexp_NM.append(total)
        tail_NM.append(np.log(np.exp(scaled[:, top_k:]).sum(axis=1)) - total)
    return LabelRows(
        logits_NV[:, :top_k].astype(np.float32),
        np.tile(np.arange(top_k, dtype=np.int32), (num_rows, 1)),
        np.full(num_rows, top_k, np.int32),
        np.stack(logsumexp_NM, axis=1).astype(np.float32),
        np.stack(tail_NM, axis=1).astype(np.float32),
        np.full(num_rows, np.nan, np.float32),
        np.zeros(num_rows, np.int32),
    )


def spec_of(temperatures, top_k=64, vocab_size=5000):
    return LabelSpec(vocab_size, top_k, temperatures, "gap_f16", "score", "all")


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_stored_temperatures_are_exact(temperature):
    logits_NV = whole_vocabulary()
    rows = top_rows(logits_NV, 64, (1.0, 2.0, 4.0))
    expected = logits_NV / temperature
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    found = logprobs(rows, spec_of((1.0, 2.0, 4.0)), temperature)
    np.testing.assert_allclose(found, expected[:, :64], atol=3e-6)
    tail = log_tail_mass(rows, spec_of((1.0, 2.0, 4.0)), temperature)
    np.testing.assert_allclose(np.exp(found).sum(axis=1) + np.exp(tail), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "bound"),
    [
        (1.25, 2e-3),
        (1.5, 2e-3),
        (2.5, 1e-4),
        (3.0, 1e-4),
        (4.01, 1e-5),
        (5.0, 1e-5),
        (8.0, 1e-5),
        (20.0, 1e-5),
    ],
)
def test_interpolated_bucket_divergence_is_small(temperature, bound):
    """KL over the K + 1 outcomes between the true softened distribution and the interpolated one."""
    logits_NV = whole_vocabulary()
    rows = top_rows(logits_NV, 64, (1.0, 2.0, 4.0))
    spec = spec_of((1.0, 2.0, 4.0))
    true = logits_NV / temperature
    true -= np.log(np.exp(true).sum(axis=1, keepdims=True))
    true_tail = np.log(np.exp(true[:, 64:]).sum(axis=1))
    found = logprobs(rows, spec, temperature).astype(np.float64)
    found_tail = log_tail_mass(rows, spec, temperature).astype(np.float64)
    divergence = (np.exp(true[:, :64]) * (true[:, :64] - found)).sum(axis=1)
    divergence += np.exp(true_tail) * (true_tail - found_tail)
    assert divergence.mean() < bound
    np.testing.assert_allclose(np.exp(found).sum(axis=1) + np.exp(found_tail), 1, atol=1e-5)


def test_interpolation_on_the_capture_recovers_a_left_out_temperature():
    """T=2 from {1, 4} alone: the hard case. Bucket divergence on real rows."""
    spec, sequences = load_capture(128)
    without = replace(spec, temperatures=(1.0, 4.0))
    divergences = []
    for sequence in sequences:
        rows = sequence.rows
        fewer = replace(
            rows, logsumexp_NM=rows.logsumexp_NM[:, [0, 2]], log_tail_mass_NM=rows.log_tail_mass_NM[:, [0, 2]]
        )
        true, true_tail = logprobs(rows, spec, 2.0), log_tail_mass(rows, spec, 2.0)
        found, found_tail = logprobs(fewer, without, 2.0), log_tail_mass(fewer, without, 2.0)
        divergences.append(
            (np.exp(true) * (true - found)).sum(axis=1) + np.exp(true_tail) * (true_tail - found_tail)
        )
    divergence = np.concatenate(divergences)
    assert 0 < divergence.mean() < 3e-3
    assert np.quantile(divergence, 0.99) < 2e-2


@pytest.mark.parametrize("temperature", [0.0, -1.0, 0.5, 0.99])
def test_temperatures_below_the_stored_ones_are_refused(temperature):
    rows = top_rows(whole_vocabulary(4), 64, (1.0, 2.0, 4.0))
    with pytest.raises(TemperatureError, match=r"below 1, the lowest of the stored normalisers \(1, 2, 4\)"):
        log_tail_mass(rows, spec_of((1.0, 2.0, 4.0)), temperature)
    with pytest.raises(TemperatureError, match="renormalise"):
        logprobs(rows, spec_of((1.0, 2.0, 4.0)), temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.5, 8.0])
def test_one_stored_temperature_is_too_few_to_interpolate(temperature):
    rows = top_rows(whole_vocabulary(4), 64, (1.0,))
    with pytest.raises(TemperatureError, match="too few to interpolate"):
        log_tail_mass(rows, spec_of((1.0,)), temperature)


def test_rows_that_hold_everything_have_no_tail_at_any_temperature():
    logits_NV = whole_vocabulary(8, vocab_size=40)
    with np.errstate(divide="ignore"):
        rows = top_rows(logits_NV, 40, (1.0, 2.0, 4.0))
    spec = spec_of((1.0, 2.0, 4.0), top_k=40, vocab_size=40)
    for temperature in (1.0, 1.7, 4.0):
        assert np.isneginf(log_tail_mass(rows, spec, temperature)).all()
        np.testing.assert_allclose(np.exp(logprobs(rows, spec, temperature)).sum(axis=1), 1, atol=1e-5)


def test_the_polynomial_passes_through_the_stored_points_and_the_free_knot():
    rows = top_rows(whole_vocabulary(16), 64, (1.0, 2.0, 4.0))
    coefficients = tail_sum_polynomial(rows, spec_of((1.0, 2.0, 4.0)))
    np.testing.assert_allclose(coefficients[:, 0], np.log(5000 - 64), rtol=1e-12)
    at_two = coefficients @ 0.5 ** np.arange(4)
    np.testing.assert_allclose(at_two, rows.logsumexp_NM[:, 1] + rows.log_tail_mass_NM[:, 1], atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 7, 63])
def test_truncation_moves_the_cut_mass_to_the_tail(top_k):
    logits_NV = whole_vocabulary()
    temperatures = (1.0, 2.0, 4.0)
    rows = top_rows(logits_NV, 64, temperatures)
    cut = truncate(rows, spec_of(temperatures), top_k)
    direct = top_rows(logits_NV, top_k, temperatures)
    np.testing.assert_allclose(cut.log_tail_mass_NM, direct.log_tail_mass_NM, atol=1e-5)
    np.testing.assert_array_equal(cut.logits_NK, direct.logits_NK)
    np.testing.assert_array_equal(cut.count_N, direct.count_N)


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
@pytest.mark.parametrize("top_k", [8, 16, 50])
def test_the_tail_of_a_prefix_read_is_as_exact_as_the_format_says(value_kind, top_k):
    """Mass off by less than 3e-4, and by less than 2% of itself wherever 1% or more is outside."""
    spec, sequences = load_capture(128, value_kind)
    buffer = io.BytesIO()
    write_shard(buffer, sequences, spec, None)
    reader = ShardReader(buffer, spec, None)
    for before, after in zip(sequences, reader.iter_sequences(top_k=top_k), strict=True):
        exact = np.exp(truncate(before.rows, spec, top_k).log_tail_mass_NM)
        found = np.exp(after.rows.log_tail_mass_NM)
        np.testing.assert_allclose(found, exact, rtol=0, atol=3e-4)
        relative = np.abs(found / exact - 1)
        assert relative[exact >= 0.01].max() < 0.02


def test_a_prefix_keeps_the_stored_tail_of_rows_that_end_within_it():
    spec, sequences = load_capture(128)
    rows = truncate(sequences[0].rows, spec, 5)
    buffer = io.BytesIO()
    write_shard(buffer, [replace(sequences[0], rows=rows)], spec, None)
    (after,) = ShardReader(buffer, spec, None).iter_sequences(top_k=7)
    np.testing.assert_allclose(after.rows.log_tail_mass_NM, rows.log_tail_mass_NM, atol=4.9e-4)
    assert np.isneginf(after.rows.logits_NK[:, 5:]).all()
    assert (after.rows.count_N == 5).all()
