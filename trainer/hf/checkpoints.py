"""What a checkpoint holds beside the Trainer's own: the dataset's place, in files that others may read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from trainer.data.dataset import StreamingLogitDataset

DATASET_STATE_NAME = "logit_dataset_state.json"


def write_place(folder: Path, dataset: StreamingLogitDataset) -> None:
    """Before anything else of a checkpoint, so that none is ever complete but for this."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATASET_STATE_NAME).write_text(json.dumps(dataset.state_dict()))


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
    complete = [
        path
        for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (path / DATASET_STATE_NAME).exists() and (path / "trainer_state.json").exists()
    ]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default="")) or None


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


class LogAtCheckpoints(TrainerCallback):
    """Ends a line of the log at every checkpoint, as the means since the last line are not saved.

    So a resumed run's first line is over the same steps as in the unbroken run.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if control.should_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


class TrueEpoch(TrainerCallback):
    """Keeps `state.epoch` at the dataset's place, which is right on any number of processes."""

    def __init__(self, dataset: StreamingLogitDataset) -> None:
        self.dataset = dataset

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        state.epoch = self.dataset.epoch + self.dataset.consumed / self.dataset.epoch_length
