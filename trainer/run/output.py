"""What a run leaves in its output folder, and whether it is finished or may go on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch.utils.tensorboard import SummaryWriter

from logitstore.common.config_file import ConfigError, flatten
from logitstore.common.whole_file import remove_parts, write_whole
from logitstore.students.snapshots import SNAPSHOTS_NAME
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.checkpoints import last_checkpoint
from trainer.run.config import TrainConfig, resolved
from trainer.run.file_names import CHECKPOINTS_NAME, CONFIG_NAME, METRICS_NAME, SAMPLES_NAME
from trainer.run.result.model_card import RELIABILITY_NAME, CardFigures, model_card
from trainer.run.result.pictures import draw_reliability

if TYPE_CHECKING:
    from trainer.hf.arguments import OfflineDistillationConfig

MAY_CHANGE = (
    "student.trust_remote_code",
    "student.attn_implementation",
    "data.stores",  # a checkpoint names their contents and weights by digest
    "data.num_workers",
    "data.cache_",
    "data.predownload",
    "data.packed_attention",  # whichever it is, it was proved to be the same
    "loss.fused",
    "loss.chunk_rows",
    "training.max_steps",
    "training.epochs",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.save_",
    "training.tensorboard",
    "training.report_to",
    "training.run_name",
    "training.project",
    "training.compile",
    "training.fsdp",
    "training.deepspeed",
    "evaluation.",
    "output.",
)
"""Settings, or beginnings of their names, with which a run may go on from a checkpoint made with others: they
say how far and on what machines, not what is trained."""


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """`metrics.json`."""

    stores: list[dict[str, Any]]
    """By store: uri, digest, selection (what says which of its sequences take part, of files of ids their
    digest), teacher, num_sequences and num_held_out that take part."""
    before: dict[str, float | int] | None
    """`trainer.hf.evaluation.evaluate.Evaluation` of the untrained student; None if not asked for."""
    after: dict[str, float | int]
    history: list[dict[str, float | int | None]]
    """By logged step: step, epoch, loss, distillation, cross_entropy, teacher_mass, student_mass,
    top1_agreement, num_rows, fill, num_cut_rows, grad_norm, learning_rate, over all processes. Loss terms are
    means per label since the last log, other means are over the rows with a teacher; where no row has one,
    what is of the teacher is absent, and teacher_mass where the loss has no tail. fill is the share of the
    places in batches that hold tokens; num_cut_rows counts label rows beyond a limit on length. None is what
    was not finite, as the gradient's norm while fp16 looks for its scale."""
    num_steps: int
    num_parameters: int
    num_trainable_parameters: int
    num_tokens: int
    """Tokens of the batches trained on, padding included; of all processes, since the last start."""
    train_seconds: float
    """Since the last start, evaluation excluded."""
    alignment_nll: dict[str, float]
    """Mean negative log-likelihood of tokens at offsets -1, 0, +1 from the rows, first store."""
    started: str
    versions: dict[str, str]
    teacher: dict[str, float | int] | None = None
    """`trainer.hf.evaluation.teacher_figures.TeacherFigures` of the rows of `after`; None where
    nothing is known of it."""
    evaluation_stores: list[dict[str, Any]] = field(default_factory=list)
    """By store of `evaluation.stores`: uri, digest, selection, teacher, num_sequences. Empty where a part of
    the training stores is held out."""
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    """On the rows of `after`: "student", as `trainer.hf.evaluation.calibration.Calibration`, and "teacher",
    as `Reliability` of the same module. Empty in metrics of earlier versions."""


def open_tensorboard(
    config: TrainConfig, folder: Path, arguments: OfflineDistillationConfig
) -> SummaryWriter | None:
    """Where the first process writes its curves, if they are wanted."""
    if not config.training.tensorboard or arguments.process_index:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def check_place(folder: Path) -> None:
    """Raises ConfigError where the output folder cannot be made: before stores and student are loaded."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "is not writable" if nearest.is_dir() else "is a file"
        raise ConfigError(
            f"output.folder = {str(folder)!r} cannot be made: {nearest} {why}; choose another place, or "
            "correct its rights"
        )


def finished_run(
    folder: Path, config: TrainConfig, train_set: StreamingLogitDataset, held_out: StreamingLogitDataset
) -> RunMetrics | None:
    """What the same run left when it finished before; None if it did not, or was another."""
    saved, metrics = _saved_settings(folder), _saved_metrics(folder)
    if saved is None or metrics is None:
        return None
    changed = _changed_contents(config, metrics, train_set, held_out)
    return RunMetrics(**metrics) if saved == resolved(config) and not changed else None


def unfinished_run(
    folder: Path, config: TrainConfig, train_set: StreamingLogitDataset, held_out: StreamingLogitDataset
) -> str | None:
    """The checkpoint to go on from, if there is one.

    Raises ConfigError if the folder holds checkpoints or a student of another run, or a finished student
    that going on would not take further.
    """
    checkpoint = last_checkpoint(folder / CHECKPOINTS_NAME)
    saved, metrics = _saved_settings(folder), _saved_metrics(folder)
    has_student = metrics is not None or any(folder.glob("*.safetensors"))
    if saved is None:
        if has_student:
            raise ConfigError(
                f"output.folder = {str(folder)!r} holds a model, and no {CONFIG_NAME} says that this command "
                "made it; choose another output.folder, or give --restart, which replaces it"
            )
        return checkpoint
    differences = _differences(saved, resolved(config))
    others = [text for name, text in differences.items() if not name.startswith(MAY_CHANGE)]
    if others and (checkpoint is not None or has_student):
        raise ConfigError(
            f"{folder} holds {'checkpoints' if checkpoint else 'a student'} of a run with other settings "
            f"({'; '.join(others)}). Restore these, choose another output.folder, or give --restart, which "
            "replaces what is there"
        )
    if metrics is not None and not (checkpoint is not None and _goes_further(config, saved, metrics)):
        changed = [*differences.values(), *_changed_contents(config, metrics, train_set, held_out)]
        raise ConfigError(
            f"{folder} holds a finished student of {metrics['num_steps']} steps, made otherwise than now "
            f"({'; '.join(changed)}). To go on from its checkpoint, raise training.max_steps or "
            "training.epochs; else restore the settings, choose another output.folder, or give --restart, "
            "which replaces the student"
            + ("" if checkpoint is not None else ". It left no checkpoint (training.save_steps)")
        )
    return checkpoint


def _goes_further(config: TrainConfig, saved: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    if config.training.max_steps is not None:
        return config.training.max_steps > metrics["num_steps"]
    return saved["training"]["max_steps"] is not None or config.training.epochs > saved["training"]["epochs"]


def _saved_settings(folder: Path) -> dict[str, Any] | None:
    """The settings in the folder, with today's defaults for settings that there were none of then."""
    try:
        saved = json.loads((folder / CONFIG_NAME).read_text())
    except FileNotFoundError:
        return None
    try:
        return resolved(TrainConfig.model_validate(saved))
    except ValidationError:
        return saved


def _saved_metrics(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / METRICS_NAME).read_text())
    except FileNotFoundError:
        return None


def _changed_contents(
    config: TrainConfig,
    metrics: Mapping[str, Any],
    train_set: StreamingLogitDataset,
    held_out: StreamingLogitDataset,
) -> list[str]:
    """Which of a finished run's stores, or of their files of ids, hold something else now."""
    changed = []
    if _contents(metrics["stores"]) != _contents_now(train_set):
        changed.append("the contents of data.stores, or of their ids")
    evaluated = [] if config.evaluation.stores is None else _contents_now(held_out)
    if _contents(metrics.get("evaluation_stores", ())) != evaluated:
        changed.append("the contents of evaluation.stores, or of their ids")
    return changed


def _contents(stores: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Earlier versions kept no selections; theirs are taken for none."""
    return [(store["digest"], store.get("selection", [])) for store in stores]


def _contents_now(dataset: StreamingLogitDataset) -> list[tuple[str, list[str]]]:
    return [(source.digest, list(source.selection.texts)) for source in dataset.sources]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What to say of each setting that differs, by its name."""
    flat_then, flat_now = _by_name(then), _by_name(now)
    return {
        name: f"{name}: {flat_then.get(name)!r} there, {flat_now.get(name)!r} now"
        for name in sorted(flat_then | flat_now)
        if flat_then.get(name) != flat_now.get(name)
    }


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting by its name; what stores say of the loss apart from where they are."""
    stores = settings.get("data", {}).get("stores", [])
    losses = [(store.get("alpha"), store.get("temperature")) for store in stores if isinstance(store, dict)]
    return {**flatten(settings), "alpha and temperature of data.stores": losses}


def begin_run(folder: Path, config: TrainConfig, *, restart: bool) -> None:
    """Say in the folder what runs now, and take away what would pass for its result."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    for part in folder.glob(f"{SNAPSHOTS_NAME}*.tmp"):  # of an earlier start that was killed
        part.unlink(missing_ok=True)
    (folder / METRICS_NAME).unlink(missing_ok=True)
    if restart or not config.evaluation.snapshots:
        (folder / SNAPSHOTS_NAME).unlink(missing_ok=True)
    if restart and (folder / CHECKPOINTS_NAME).exists():
        shutil.rmtree(folder / CHECKPOINTS_NAME)
    if restart:
        (folder / SAMPLES_NAME).unlink(missing_ok=True)
    write_whole(folder / CONFIG_NAME, json.dumps(resolved(config), indent=2) + "\n")


def save_run(
    folder: Path, config: TrainConfig, train_set: StreamingLogitDataset, metrics: RunMetrics
) -> None:
    """Everything beside the model itself."""
    settings = resolved(config)
    heads = [({"uri": source.uri, "digest": source.digest}, source.manifest) for source in train_set.sources]
    if metrics.calibration:
        draw_reliability(folder / RELIABILITY_NAME, metrics.calibration)
    card = CardFigures(
        metrics.before, metrics.after, metrics.teacher, metrics.calibration.get("student"), metrics.num_steps
    )
    write_whole(folder / "README.md", model_card(heads, settings, card))
    # Last, since its presence says that the run is finished.
    write_whole(folder / METRICS_NAME, json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")
