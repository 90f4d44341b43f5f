"""How sure a model is and how often it is right: reliability by bins, and the temperature that mends it.

Guo et al., "On Calibration of Modern Neural Networks", 2017: logits divided by one temperature, the one with
the least negative log-likelihood (NLL), leave every top token as it is and correct the confidence.

Shape legend: N label rows, V vocabulary, C bins of confidence, J temperatures that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_BINS = 15
"""Bins of confidence, as in Guo et al."""
STEP = 0.05
"""Step of the inverse temperature."""
FIRST, LAST = 5, 40
"""Inverse temperatures tried, in steps: 0.25 to 2, so temperatures 4 to 0.5."""
UNSCALED = round(1 / STEP) - FIRST
CPU_ROWS = 8
"""Rows whose exponentials stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """By bin of confidence in the top token, the least first; bins are of equal width."""

    num_rows: tuple[int, ...]
    confidence: tuple[float | None, ...]
    """Mean of the bin's rows; None where it has none."""
    accuracy: tuple[float | None, ...]
    """Share of the bin's rows whose top token is the actual one."""

    @property
    def share_right(self) -> float:
        """Share of all rows."""
        right = (count * share for count, share in zip(self.num_rows, self.accuracy, strict=True) if share)
        return sum(right) / max(sum(self.num_rows), 1)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |accuracy - confidence|, a mean over rows."""
        off = (
            count * abs(right - sure)
            for count, right, sure in zip(self.num_rows, self.accuracy, self.confidence, strict=True)
            if right is not None and sure is not None
        )
        return sum(off) / max(sum(self.num_rows), 1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A student on the rows it is evaluated on, as it is and at the temperature that suits it best.

    That one number is fitted to the very rows it is judged on: many rows tell it, a few may flatter it.
    """

    temperature: float
    """What the student's logits are to be divided by; the inverses of those tried are STEP apart."""
    is_at_the_end: bool
    """The best of those tried is the highest or the lowest: the best may lie beyond."""
    cross_entropy: float
    """-log q of the actual tokens with it, nats."""
    calibration_error: float
    calibration_error_before: float
    reliability_before: Reliability
    reliability: Reliability


def reliability_of(sums_3C: np.ndarray) -> Reliability:
    """`sums_3C` has the rows, the right rows and the summed confidences of each bin."""
    rows_C, right_C, sure_C = sums_3C

    def means(sums_C: np.ndarray) -> tuple[float | None, ...]:
        return tuple(
            float(total / count) if count else None for total, count in zip(sums_C, rows_C, strict=True)
        )

    return Reliability(tuple(int(count) for count in rows_C), means(sure_C), means(right_C))


class CalibrationSums:
    """What adds up over rows, batches and processes, at every temperature that is tried."""

    def __init__(self) -> None:
        num_tried = LAST - FIRST + 1
        self.nll_J = torch.zeros(num_tried, dtype=torch.float64)
        self.bins_J3C = torch.zeros(num_tried, 3, NUM_BINS, dtype=torch.float64)
        """Rows, rows whose top token is the actual one, sum of confidences."""

    def add(self, logits_NV: Tensor, labels_N: Tensor) -> None:
        """Rows of float32 logits over the ids that count, and their actual tokens."""
        num_rows = CPU_ROWS if logits_NV.device.type == "cpu" else len(logits_NV)
        for start in range(0, len(logits_NV), num_rows):
            self._add(logits_NV[start : start + num_rows], labels_N[start : start + num_rows])

    def _add(self, logits_NV: Tensor, labels_N: Tensor) -> None:
        highest_N, top_N = logits_NV.max(dim=1)
        below_NV = logits_NV - highest_N[:, None]
        label_1N = below_NV.gather(1, labels_N[:, None]).t()
        right_1N = (top_N == labels_N).to(label_1N)[None]
        # At once, as each copy waits for the device.
        found = torch.cat([label_1N, right_1N, _sums_of_powers(below_NV)]).cpu().double()
        label_N, right_N, sums_JN = found[0], found[1], found[2:]
        inverse_J = torch.arange(FIRST, LAST + 1, dtype=torch.float64) * STEP
        self.nll_J += (sums_JN.log() - inverse_J[:, None] * label_N).sum(dim=1)
        confidence_JN = 1 / sums_JN
        right_JN = right_N.expand_as(confidence_JN)
        bin_JN = (confidence_JN * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        for row, values_JN in enumerate((torch.ones_like(confidence_JN), right_JN, confidence_JN)):
            self.bins_J3C[:, row].scatter_add_(1, bin_JN, values_JN)

    def add_processes(self, device: torch.device) -> None:
        """The sums of all processes; every one must call it."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flat = torch.cat([self.nll_J, self.bins_J3C.flatten()]).to(device)
            torch.distributed.all_reduce(flat)
            flat = flat.cpu()
            self.nll_J = flat[: len(self.nll_J)]
            self.bins_J3C = flat[len(self.nll_J) :].view_as(self.bins_J3C)

    def calibration(self) -> Calibration | None:
        """None without rows."""
        bins_J3C = self.bins_J3C.numpy()
        num_rows = bins_J3C[UNSCALED, 0].sum()
        if not num_rows:
            return None
        best = int(self.nll_J.argmin())
        before, after = reliability_of(bins_J3C[UNSCALED]), reliability_of(bins_J3C[best])
        return Calibration(
            temperature=1 / ((FIRST + best) * STEP),
            is_at_the_end=best in (0, LAST - FIRST),
            cross_entropy=float(self.nll_J[best] / num_rows),
            calibration_error=after.calibration_error,
            calibration_error_before=before.calibration_error,
            reliability_before=before,
            reliability=after,
        )


def _sums_of_powers(below_NV: Tensor) -> Tensor:
    """Sums over V of exp(j STEP x) for j = FIRST..LAST, by one exponential and a product for each."""
    one_step_NV = (below_NV * STEP).exp_()
    power_NV = (below_NV * ((FIRST - 1) * STEP)).exp_()
    sums = []
    for _ in range(FIRST, LAST + 1):
        power_NV *= one_step_NV
        sums.append(power_NV.sum(dim=1))
    return torch.stack(sums)
