"""The teacher's own figures on the rows that a student is evaluated on, from what is stored: no teacher runs.

Shape legend: N label rows, C bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.samples import Sample
from trainer.hf.evaluation.calibration import NUM_BINS, Calibration, Reliability, reliability_of
from trainer.hf.evaluation.evaluate import evaluation_steps


@dataclass(frozen=True, slots=True)
class TeacherFigures:
    """As the fields of `Evaluation` of these names, for the teacher in the student's place."""

    num_rows: int
    """Rows whose actual token is known."""
    cross_entropy: float
    accuracy: float
    calibration_error: float
    reliability: Reliability

    def to_dict(self) -> dict[str, float | int]:
        """The figures that are one number."""
        return {
            "num_rows": self.num_rows,
            "cross_entropy": self.cross_entropy,
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
        }


def teacher_figures(
    dataset: StreamingLogitDataset, token_limit: int | None, max_sequences: int | None
) -> TeacherFigures | None:
    """Of the rows that `evaluation_batches` gives of the same dataset.

    None where no row has a known token, and where a store holds texts alone: the rows made of those are the
    text itself, and their figures would be those of a teacher that is never wrong. `token_limit` is the most
    tokens of a sequence. Under torch.distributed each process reads its own part and gets the result of all.
    """
    if any(source.manifest.labels.support == "none" for source in dataset.sources):
        return None
    dataset.set_epoch(0)
    dataset.restart()
    steps = evaluation_steps(dataset, max_sequences)
    sums_3C, nll = np.zeros((3, NUM_BINS)), 0.0
    for samples in islice(LogitDataLoader(dataset, _as_they_are), steps):
        for sample in samples:
            nll += _add_rows(sums_3C, sample, token_limit)
    sums_3C, nll = _of_all_processes(sums_3C, nll)
    num_rows = int(sums_3C[0].sum())
    if not num_rows:
        return None
    reliability = reliability_of(sums_3C)
    return TeacherFigures(
        num_rows=num_rows,
        cross_entropy=nll / num_rows,
        accuracy=float(sums_3C[1].sum() / num_rows),
        calibration_error=reliability.calibration_error,
        reliability=reliability,
    )


def calibration_record(
    student: Calibration | None, teacher: TeacherFigures | None
) -> dict[str, dict[str, Any]]:
    """What a run and an evaluation save of both: "student" and "teacher", what there is of them."""
    found = {} if student is None else {"student": asdict(student)}
    return found if teacher is None else {**found, "teacher": asdict(teacher.reliability)}


def _as_they_are(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples


def _add_rows(sums_3C: np.ndarray, sample: Sample, token_limit: int | None) -> float:
    """Add rows, right ones and confidences to their bins; the sum of -log p of the actual tokens."""
    sequence, rows = sample.sequence, sample.sequence.rows
    count = rows.num_rows
    if token_limit is not None:
        count = max(0, min(count, token_limit - sequence.label_start))
    counts_N = sequence.loss_mask_N[:count] & np.isfinite(rows.label_logprob_N[:count])
    confidence_N = np.exp(rows.logits_NK[:count, 0] - rows.logsumexp_NM[:count, 0])[counts_N]
    right_N = rows.label_rank_N[:count][counts_N] == 1
    bin_N = np.clip((confidence_N * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    for row, values_N in enumerate((np.ones_like(confidence_N), right_N, confidence_N)):
        np.add.at(sums_3C[row], bin_N, values_N)
    return -float(rows.label_logprob_N[:count][counts_N].sum(dtype=np.float64))


def _of_all_processes(sums_3C: np.ndarray, nll: float) -> tuple[np.ndarray, float]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums_3C, nll
    flat = torch.tensor([nll, *sums_3C.flatten().tolist()], dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        flat = flat.to(torch.device("cuda", torch.cuda.current_device()))
    torch.distributed.all_reduce(flat)
    values = flat.cpu().numpy()
    return values[1:].reshape(3, NUM_BINS), float(values[0])
