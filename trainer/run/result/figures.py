"""The figures of a run once it has trained, for `metrics.json`."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any

import torch
import transformers

from logitstore.inputs.json_text import finite
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.evaluation.teacher_figures import calibration_record, teacher_figures
from trainer.hf.trainer import OfflineDistillationTrainer
from trainer.run.config import TrainConfig
from trainer.run.output import RunMetrics
from trainer.run.watch.held_out import HeldOutFigures


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Times of the training alone, since its last start."""

    started: datetime
    train_seconds: float


def run_metrics(
    config: TrainConfig,
    trainer: OfflineDistillationTrainer,
    train_set: StreamingLogitDataset,
    held_out: StreamingLogitDataset,
    before: dict[str, float | int] | None,
    figures: HeldOutFigures,
    times: RunTimes,
) -> RunMetrics:
    """Evaluates the teacher on the rows on which `figures` has evaluated the student; on every process."""
    model: Any = trainer.model
    teacher = teacher_figures(held_out, trainer.collator.settings, config.evaluation.max_sequences)
    return RunMetrics(
        stores=_describe(config, train_set, held_out),
        evaluation_stores=_describe_evaluation(config, held_out),
        before=before,
        after=figures.after,
        history=finite([entry for entry in trainer.state.log_history if "loss" in entry]),
        num_steps=trainer.state.global_step,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_tokens=int(trainer.state.num_input_tokens_seen) - figures.tokens_before,
        train_seconds=times.train_seconds,
        alignment_nll={f"{offset:+d}": nll for offset, nll in trainer.alignments[0].nll_by_offset.items()},
        started=times.started.isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        teacher=None if teacher is None else teacher.to_dict(),
        calibration=calibration_record(figures.calibration.calibration(), teacher),
    )


def _describe_evaluation(config: TrainConfig, held_out: StreamingLogitDataset) -> list[dict[str, Any]]:
    if config.evaluation.stores is None:
        return []
    return [
        {
            "uri": source.uri,
            "digest": source.digest,
            "selection": list(source.selection.texts),
            "teacher": source.manifest.teacher.model,
            "num_sequences": sum(source.lengths),
        }
        for source in held_out.sources
    ]


def _describe(
    config: TrainConfig, train_set: StreamingLogitDataset, held_out: StreamingLogitDataset
) -> list[dict[str, Any]]:
    # Of plain texts, which come last, nothing is held out. A store may be named twice, with other conditions.
    parts = held_out.sources if config.evaluation.stores is None else []
    return [
        {
            "uri": source.uri,
            "digest": source.digest,
            "selection": list(source.selection.texts),
            "teacher": source.manifest.teacher.model,
            "num_sequences": sum(source.lengths),
            "num_held_out": sum(part.lengths) if part is not None and weight else 0,
        }
        for (source, weight), part in zip_longest(
            zip(train_set.sources, train_set.weights, strict=True), parts
        )
    ]
