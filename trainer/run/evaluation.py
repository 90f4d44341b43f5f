"""Evaluate a saved student beside its teacher, on the held-out records of a configuration's stores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from logitstore.common.config_file import ConfigError
from logitstore.models.hub import check_model_name
from trainer.batch.collate import DistillationCollator
from trainer.hf.checks.language_model import check_causal, check_has_head
from trainer.hf.checks.lengths import check_lengths, length_limit, student_context
from trainer.hf.checks.packing_check import uses_flash_attention
from trainer.hf.evaluation.calibration import Calibration, CalibrationSums
from trainer.hf.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluation_batches,
    tokenizer_size_of,
)
from trainer.hf.evaluation.teacher_figures import (
    TeacherFigures,
    calibration_record,
    teacher_figures,
)
from trainer.hf.heads import find_head
from trainer.hf.student import student_ids
from trainer.run.advice import notes_on_held_out
from trainer.run.config import TrainConfig
from trainer.run.file_names import CONFIG_NAME, METRICS_NAME
from trainer.run.reading.datasets import collate_settings, datasets, real_size
from trainer.run.student import load_student, load_tokenizer

STUDENT_FILES = ("config.json", "adapter_config.json")
"""One of them is in the folder of a student or of its adapters."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A student and its teacher on the same rows."""

    student: Evaluation
    calibration: Calibration | None
    teacher: TeacherFigures | None
    """None where nothing is known of it."""

    def to_dict(self) -> dict[str, Any]:
        """The student's figures, and "teacher" and "calibration" as in `RunMetrics`."""
        return {
            **self.student.to_dict(),
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "calibration": calibration_record(self.calibration, self.teacher),
        }


def evaluate_model(
    config: TrainConfig, model_path: str | None = None, *, tell: Callable[[str], None] | None = None
) -> Judged:
    """Evaluate a saved student, or that of the run, on the held-out records of the configuration's stores.

    `tell` gets what the figures mean where they do not mean what their names say. Raises ConfigError where
    no student is.
    """
    setting, model_path = (
        ("output.folder", config.output.folder) if model_path is None else ("--model", model_path)
    )
    check_model_name(model_path, revision=None, setting=setting)
    if Path(model_path).is_dir() and not any((Path(model_path) / name).is_file() for name in STUDENT_FILES):
        raise ConfigError(
            f"{setting} = {model_path!r} holds no student; train one into it first (`penumbra train "
            "run`), or give the folder of one as --model"
        )
    if tell is not None and setting == "output.folder" and _is_being_trained(Path(model_path)):
        tell(
            f"note: the run in {model_path} has not finished, so the student there is of an earlier one; "
            "--model names a checkpoint of this one"
        )
    tokenizer = load_tokenizer(config.student, config.data.stores)
    _, held_out = datasets(config, tokenizer)
    student = config.student.model_copy(
        update={"model": model_path, "small": None, "lora": None, "quantize": None}
    )
    model: Any = load_student(student, tokenizer, vocab_size=None, seed=0)
    check_has_head(model)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    autocast = _autocast(config.training.precision, model.device)
    with autocast if uses_flash_attention(model) else contextlib.nullcontext():
        check_causal(model)
        head = find_head(model) if config.loss.fused else None
    if tell is not None:
        for note in notes_on_held_out(held_out.sources):
            tell(f"note: {note}")
    given, context = collate_settings(config, tokenizer), student_context(model)
    check_lengths(held_out, given, context, purpose="evaluation")
    settings = replace(given, max_length=length_limit(given, context), student_vocab_size=student_ids(model))
    limit = config.evaluation.max_sequences
    sums = CalibrationSums()
    with autocast:
        evaluation = evaluate(
            model,
            evaluation_batches(held_out, DistillationCollator(settings), limit),
            head=head,
            vocab_size=real_size(config, held_out, model),
            tokenizer_size=tokenizer_size_of(held_out),
            calibration=sums,
        )
    return Judged(evaluation, sums.calibration(), teacher_figures(held_out, settings, limit))


def _is_being_trained(folder: Path) -> bool:
    """A run writes its settings when it begins, and its figures when its student is saved."""
    return (folder / CONFIG_NAME).is_file() and not (folder / METRICS_NAME).is_file()


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """As the student is evaluated while it is trained; a CPU trains none in "fp16"."""
    if precision == "fp32" or (precision == "fp16" and device.type == "cpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
