"""What a run leaves in its output folder, and whether it is finished or may go on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.evaluate import Evaluation
from trainer.hf.trainer import last_checkpoint
from trainer.run.config import ConfigError, TrainConfig, resolved
from trainer.run.model_card import model_card

if TYPE_CHECKING:
    from trainer.hf.trainer import OfflineDistillationConfig

METRICS_NAME = "metrics.json"
CONFIG_NAME = "train.json"
CHECKPOINTS_NAME = "checkpoints"
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
    "evaluation.",
    "output.",
)
"""Settings, or beginnings of their names, with which a run may go on from a checkpoint made with others: they
say how far and on what machines, not what is trained."""


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """`metrics.json`."""

    stores: list[dict[str, Any]]
    """By store: uri, digest, teacher, num_sequences and num_held_out that take part."""
    before: dict[str, float | int] | None
    """`trainer.hf.evaluate.Evaluation` of the untrained student; None if not asked for."""
    after: dict[str, float | int]
    history: list[dict[str, float | int]]
    """By logged step: step, epoch, loss, distillation, cross_entropy, teacher_mass, student_mass,
    top1_agreement, grad_norm, learning_rate. Loss terms are means per label since the last log."""
    num_steps: int
    num_parameters: int
    num_trainable_parameters: int
    num_tokens: int
    """Tokens of the batches trained on, padding included; of this process, since its last start."""
    train_seconds: float
    """Since the last start, evaluation excluded."""
    alignment_nll: dict[str, float]
    """Mean negative log-likelihood of tokens at offsets -1, 0, +1 from the rows, first store."""
    started: str
    versions: dict[str, str]


def open_tensorboard(
    config: TrainConfig, folder: Path, arguments: OfflineDistillationConfig
) -> SummaryWriter | None:
    """Where the first process writes its curves, if they are wanted."""
    if not config.training.tensorboard or arguments.process_index:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def write_evaluations(board: SummaryWriter, metrics: RunMetrics) -> None:
    for step, evaluation in ((0, metrics.before), (metrics.num_steps, metrics.after)):
        for name, value in (evaluation or {}).items():
            board.add_scalar(f"eval/{name}", value, step)
    board.close()


def finished_run(folder: Path, config: TrainConfig, train_set: StreamingLogitDataset) -> RunMetrics | None:
    """What the same run left when it finished before; None if it did not, or was another."""
    try:
        saved_config = json.loads((folder / CONFIG_NAME).read_text())
        metrics = json.loads((folder / METRICS_NAME).read_text())
    except FileNotFoundError:
        return None
    digests = [store["digest"] for store in metrics["stores"]]
    if saved_config != resolved(config) or digests != [source.digest for source in train_set.sources]:
        return None
    return RunMetrics(**metrics)


def unfinished_run(folder: Path, config: TrainConfig) -> str | None:
    """The checkpoint to go on from, if there is one. Raises ConfigError if its run was another."""
    checkpoint = last_checkpoint(folder / CHECKPOINTS_NAME)
    if checkpoint is None or not (folder / CONFIG_NAME).exists():
        return checkpoint
    then, now = _flat(json.loads((folder / CONFIG_NAME).read_text())), _flat(resolved(config))
    differences = [
        f"{name}: {then.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(then | now)
        if then.get(name) != now.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if differences:
        raise ConfigError(
            f"{folder} holds checkpoints of a run with other settings ({'; '.join(differences)}). Restore "
            "these, choose another output.folder, or give --restart, which removes the checkpoints"
        )
    return checkpoint


def begin_run(folder: Path, config: TrainConfig, *, restart: bool) -> None:
    """Say in the folder what runs now, and take away what would pass for its result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_NAME).unlink(missing_ok=True)
    if restart and (folder / CHECKPOINTS_NAME).exists():
        shutil.rmtree(folder / CHECKPOINTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(resolved(config), indent=2) + "\n")


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def save_run(
    folder: Path, config: TrainConfig, train_set: StreamingLogitDataset, metrics: RunMetrics
) -> None:
    """Everything beside the model itself."""
    settings = resolved(config)
    heads = [({"uri": source.uri, "digest": source.digest}, source.manifest) for source in train_set.sources]
    before, after = (
        None if figures is None else Evaluation(**figures)  # type: ignore[arg-type]
        for figures in (metrics.before, metrics.after)
    )
    assert after is not None
    (folder / "README.md").write_text(model_card(heads, settings, before, after, metrics.num_steps))
    # Last, since its presence says that the run is finished.
    temporary = folder / f"{METRICS_NAME}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")
    temporary.replace(folder / METRICS_NAME)
