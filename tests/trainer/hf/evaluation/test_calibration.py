"""The temperature that suits a student best, and its reliability, against what the definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.hf.evaluation.calibration import NUM_BINS, CalibrationSums
from trainer.run.result.model_card import calibration_in_words


def drawn(scale: float, num_rows: int = 3000, vocab_size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `scale` times those the labels are drawn from: too sure above 1."""
    rng = np.random.default_rng(5)
    true_NV = rng.normal(0, 1.5, (num_rows, vocab_size))
    labels_N = (true_NV + rng.gumbel(size=true_NV.shape)).argmax(axis=1)
    return torch.tensor(scale * true_NV, dtype=torch.float32), torch.tensor(labels_N)


@pytest.mark.parametrize(("scale", "temperature"), [(2.0, 2.0), (1.0, 1.0), (0.8, 0.8), (9.0, 4.0)])
def test_the_temperature_is_the_one_that_the_logits_were_scaled_by(scale: float, temperature: float) -> None:
    logits_NV, labels_N = drawn(scale)
    sums = CalibrationSums()
    sums.add(logits_NV[:1700], labels_N[:1700])
    sums.add(logits_NV[1700:], labels_N[1700:])
    found = sums.calibration()
    assert found is not None
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    assert found.is_at_the_end == (scale == 9.0)
    nll = torch.nn.functional.cross_entropy(logits_NV.double() / found.temperature, labels_N)
    assert found.cross_entropy == pytest.approx(float(nll), rel=1e-5)
    for reliability, error, t in (
        (found.reliability_before, found.calibration_error_before, 1.0),
        (found.reliability, found.calibration_error, found.temperature),
    ):
        sure_N, top_N = (logits_NV.double() / t).softmax(dim=1).max(dim=1)
        bin_N, right_N = (sure_N * NUM_BINS).long().clamp(max=NUM_BINS - 1), (top_N == labels_N).double()
        off = [abs(float((right_N - sure_N)[bin_N == place].sum())) for place in range(NUM_BINS)]
        assert error == pytest.approx(sum(off) / len(labels_N), abs=1e-3)
        assert sum(reliability.num_rows) == len(labels_N)
    if scale != 1.0:
        assert found.calibration_error < 0.5 * found.calibration_error_before


def test_without_rows_nothing_is_found() -> None:
    assert CalibrationSums().calibration() is None


@pytest.mark.parametrize(
    ("error", "said"), [(0.0454, "0.0454, no less than 0.0274"), (0.01, "0.0100, and 0.0274")]
)
def test_what_the_temperature_gains_is_told_apart_from_what_it_does_not(error: float, said: str) -> None:
    """It has the least cross-entropy, which is not the least calibration error: 0.0454 "instead of" 0.0274
    read as a gain."""
    figures = {"temperature": 0.95, "is_at_the_end": False, "cross_entropy": 2.5, "calibration_error": error}
    words = calibration_in_words(figures | {"calibration_error_before": 0.0274})
    assert words.startswith(
        "divided by 0.95, the student's logits give the actual tokens the least cross-entropy"
    )
    assert f"calibration error is then {said} as they are" in words
