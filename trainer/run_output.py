"""What a run leaves in its output folder, and whether it is finished."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from trainer.config import TrainConfig, resolved
from trainer.dataset import StreamingLogitDataset
from trainer.evaluate import Evaluation
from trainer.model_card import model_card

if TYPE_CHECKING:
    from trainer.hf_trainer import OfflineDistillationConfig

METRICS_NAME = "metrics.json"
CONFIG_NAME = "train.json"


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """`metrics.json`."""

    stores: list[dict[str, Any]]
    """By store: uri, digest, teacher, num_sequences and num_held_out that take part."""
    before: dict[str, float | int] | None
    """`trainer.evaluate.Evaluation` of the untrained student; None if not asked for."""
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
    (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n")
    # Last, since its presence says that the run is finished.
    temporary = folder / f"{METRICS_NAME}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")
    temporary.replace(folder / METRICS_NAME)
