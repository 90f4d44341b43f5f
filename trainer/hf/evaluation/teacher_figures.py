"""The teacher's own figures on the rows that a student is evaluated on, from what is stored: no teacher runs.

Shape legend: N label rows, C bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from trainer.batch.collate import counted_labels
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.samples import Sample
from trainer.hf.evaluation.calibration import NUM_BINS, Calibration, Reliability, reliability_of


@dataclass(frozen=True, slots=True)
class TeacherFigures:
    """As the fields of `Evaluation` of these names, for the teacher in the student's place."""

    num_rows: int
    """The student's."""
    num_known_labels: int
    """Those whose actual token's log-probability is known: of rows that were imported or mapped to another
    tokenizer, often those alone that have it among their entries."""
    cross_entropy: float | None
    """None unless it is known of all rows: of a part of them it would be that of the easier ones."""
    reliability: Reliability | None
    """None where a store's entries are at given ids or mapped to another tokenizer: the teacher's top token
    may be none of them."""

    def to_dict(self) -> dict[str, float | int]:
        """The figures that are one number and known."""
        found: dict[str, float | int] = {
            "num_rows": self.num_rows,
            "num_known_labels": self.num_known_labels,
        }
        if self.cross_entropy is not None:
            found["cross_entropy"] = self.cross_entropy
        if self.reliability is not None:
            found["accuracy"] = self.reliability.share_right
            found["calibration_error"] = self.reliability.calibration_error
        return found


def teacher_figures(
    dataset: StreamingLogitDataset, settings: CollateSettings, max_sequences: int | None
) -> TeacherFigures | None:
    """Figures of the rows that `evaluation_batches` gives of the dataset with a collator of these settings.

    None where nothing is known of it, and where a store holds texts alone: the rows made of those are the
    text itself, and their figures would be those of a teacher that is never wrong. Under torch.distributed
    each process reads its own part and gets the result of all.
    """
    if any(source.manifest.labels.support == "none" for source in dataset.sources):
        return None
    sums_3C, known_2 = np.zeros((3, NUM_BINS)), np.zeros(2)
    for samples in LogitDataLoader(dataset.judged(max_sequences), _as_they_are):
        for sample in samples:
            _add_rows(sums_3C, known_2, sample, settings)
    sums_3C, known_2 = _of_all_processes(sums_3C, known_2)
    num_rows, num_known = int(sums_3C[0].sum()), int(known_2[0])
    has_top = all(source.manifest.has_top_entries for source in dataset.sources)
    if not num_rows or not (has_top or num_known == num_rows):
        return None
    return TeacherFigures(
        num_rows=num_rows,
        num_known_labels=num_known,
        cross_entropy=float(known_2[1]) / num_rows if num_known == num_rows else None,
        reliability=reliability_of(sums_3C) if has_top else None,
    )


def calibration_record(
    student: Calibration | None, teacher: TeacherFigures | None
) -> dict[str, dict[str, Any]]:
    """What a run and an evaluation save of both: "student" and "teacher", what there is of them."""
    found = {} if student is None else {"student": asdict(student)}
    if teacher is None or teacher.reliability is None:
        return found
    return {**found, "teacher": asdict(teacher.reliability)}


def _as_they_are(samples: Sequence[Sample]) -> Sequence[Sample]:
    return samples


def _add_rows(sums_3C: np.ndarray, known_2: np.ndarray, sample: Sample, settings: CollateSettings) -> None:
    """Add rows, right ones and confidences to their bins, and to `known_2` the number of actual tokens whose
    log-probability is known and the sum of its negatives."""
    sequence, rows = sample.sequence, sample.sequence.rows
    limit = min(len(sequence.token_ids_T), settings.token_limit or len(sequence.token_ids_T))
    count = max(0, min(rows.num_rows, limit - sequence.label_start))
    positions, _ = counted_labels(sequence, count, settings.segment_weights)
    counted = positions - sequence.label_start
    confidence_N = np.exp(rows.logits_NK[counted, 0] - rows.logsumexp_NM[counted, 0])
    # Not by rank, which some rows do not know, and by which two that share the top place are both second.
    right_N = rows.token_ids_NK[counted, 0] == sequence.token_ids_T[positions]
    bin_N = np.clip((confidence_N * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    for row, values_N in enumerate((np.ones_like(confidence_N), right_N, confidence_N)):
        np.add.at(sums_3C[row], bin_N, values_N)
    label_logprob_N = rows.label_logprob_N[counted]
    is_known_N = np.isfinite(label_logprob_N)
    known_2 += (is_known_N.sum(), -label_logprob_N[is_known_N].sum(dtype=np.float64))


def _of_all_processes(sums_3C: np.ndarray, known_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums_3C, known_2
    flat = torch.tensor([*known_2.tolist(), *sums_3C.flatten().tolist()], dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        flat = flat.to(torch.device("cuda", torch.cuda.current_device()))
    torch.distributed.all_reduce(flat)
    values = flat.cpu().numpy()
    return values[2:].reshape(3, NUM_BINS), values[:2]
