"""What a checkpoint holds beside the Trainer's own: the dataset's place, in files that others may read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy

from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import SettingError
from trainer.loss.loss_settings import LossSettings

DATASET_STATE_NAME = "logit_dataset_state.json"
SETTINGS_NAME = "distillation_settings.json"
OF_THE_OPTIMIZER = (
    "optim",
    "optim_args",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)
"""Arguments that a checkpoint's optimizer has itself: it would go on with its own, whatever is given."""


def write_place(folder: Path, state: Mapping[str, Any]) -> None:
    """The dataset's state, before anything else of a checkpoint, so that none is complete but for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATASET_STATE_NAME).write_text(json.dumps(state))


def settings_of_training(
    args: Any, store_losses: Sequence[LossSettings], *, makes_optimizer: bool
) -> dict[str, Any]:
    """As JSON values, what a resumed training may not change: the loss, and an optimizer of the arguments."""
    settings = {**asdict(args.loss_settings()), "store_losses": [asdict(one) for one in store_losses]}
    if makes_optimizer:
        settings |= {name: getattr(args, name) for name in OF_THE_OPTIMIZER}
    return json.loads(json.dumps(settings))


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / SETTINGS_NAME).write_text(json.dumps(settings))


def check_resumable(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises SettingError for a checkpoint without its optimizer, or of a training with other settings.

    One of an earlier version does not name its settings and is taken.
    """
    remedy = "to train its weights otherwise, give the checkpoint as the model"
    if folder.is_dir() and not [*folder.glob("optimizer*"), *folder.glob("global_step*")]:
        raise SettingError(
            f"{folder} holds no optimizer (it was saved by save_only_model=True, or that was removed), so "
            f"nothing can be resumed from it: optimizer and schedule would begin anew; {remedy}"
        )
    path = folder / SETTINGS_NAME
    saved = json.loads(path.read_text()) if path.exists() else {}
    changed = [
        f"{name} {saved[name]!r} there, {value!r} now"
        for name, value in settings.items()
        if name in saved and saved[name] != value
    ]
    if changed:
        raise SettingError(
            f"{folder} is of a training with other settings ({'; '.join(changed)}); restore them, or, "
            f"{remedy}"
        )


def take_up_patience(callbacks: Iterable[Any], state: TrainerState) -> None:
    """Have early stopping count on from the checkpoint that the state is of, or anew."""
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            by_class: Any = state.stateful_callbacks or {}
            saved = by_class.get(type(callback).__name__)
            last = saved[-1] if isinstance(saved, list) else saved
            counted = (last or {}).get("attributes", {}) if state.global_step else {}
            callback.early_stopping_patience_counter = counted.get("early_stopping_patience_counter", 0)


def take_up_place(folder: Path, dataset: StreamingLogitDataset) -> None:
    """Go on where the checkpoint stood. Raises FileNotFoundError where it does not say so."""
    path = folder / DATASET_STATE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint does not say where its data stood, and starting from "
            "zero would train on data twice. Resume from a checkpoint of OfflineDistillationTrainer"
        )
    dataset.load_state_dict(json.loads(path.read_text()))


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint below a folder, or None."""
    complete = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_complete(path)]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default="")) or None


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer's state is written last; a full disk may have left it empty or cut."""
    try:
        for name in (DATASET_STATE_NAME, TRAINER_STATE_NAME):
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def open_to_readers(folder: Path) -> None:
    """Leave a saved model without pickles, and with files that others may read as far as the umask says."""
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which nothing reads
    mode = _mode_of_new_files(folder)
    for path in folder.glob("*.safetensors"):  # written for their owner alone, whatever the umask
        path.chmod(mode)


def _mode_of_new_files(folder: Path) -> int:
    """As the umask has it. (To ask for the umask is to change it, for all threads.)"""
    probe = folder / ".mode-of-new-files"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


class LogToTheEnd(TrainerCallback):
    """Ends a line of the log at every checkpoint, as the means since the last line are not saved, and where
    training ends, so that no step is without a line.

    So a resumed run's first line is over the same steps as in the unbroken run. Of save_strategy="best" a
    line ends at every evaluation, since whether that is the best is known after the step's line.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        is_saved = control.should_save or (
            control.should_evaluate and args.save_strategy == SaveStrategy.BEST
        )
        is_end = control.should_training_stop or state.global_step >= state.max_steps
        if args.logging_strategy != IntervalStrategy.NO and (is_saved or is_end):
            control.should_log = True

    # Reached after a stop too, whoever stopped training: an evaluation does after the step's line.
    on_epoch_end = on_step_end


class DataFollower(TrainerCallback):
    """Keeps the dataset's state after the last whole step, and `state.epoch` at its place, which is right on
    any number of processes.

    A checkpoint may be saved within a step (`enable_jit_checkpoint`), when the batches of that step are read
    and not learned yet. Goes before all callbacks that may save one.
    """

    def __init__(self, dataset: StreamingLogitDataset) -> None:
        self.dataset = dataset
        self.saved = dataset.state_dict()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.saved = self.dataset.state_dict()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.saved = self.dataset.state_dict()
        state.epoch = self.dataset.epoch + self.dataset.consumed / self.dataset.epoch_length

    # What is left out at the end of an epoch is passed then.
    on_epoch_end = on_train_begin
