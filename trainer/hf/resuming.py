"""Checkpoints from which a training goes on exactly: the dataset's place is saved and taken up with them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trainer.errors import TrainingWarning
from trainer.hf.checkpoints import (
    DataFollower,
    check_resumable,
    settings_of_training,
    take_up_patience,
    take_up_place,
    write_place,
    write_settings,
)
from trainer.hf.checks.course import check_course
from trainer.hf.checks.disk import bytes_saved, check_disk, saves_in_parts
from trainer.hf.checks.given import check_trainable
from trainer.hf.checks.processes import check_one_place, check_unchanged
from trainer.hf.epochs import Place, epochs_to_begin, next_place, place_of, saves_to_come, total_steps
from trainer.hf.evaluation.evaluating import EvaluatingTrainer, evaluation_sets
from trainer.loss.loss_settings import LossSettings


class ResumingTrainer(EvaluatingTrainer):
    """The part of OfflineDistillationTrainer that begins and resumes trainings, epoch by epoch."""

    store_losses: tuple[LossSettings, ...]
    _beginning: Place
    """Where the dataset stood when the Trainer was made."""
    _follower: DataFollower
    _makes_optimizer: bool
    """Whether the optimizer is that of the arguments, and not one that was given."""

    _place = Place()
    """Where the training that runs was begun or resumed."""
    _given_optimizer: Any
    """None for that of the arguments."""
    _disk_is_checked = False

    def check_disk(
        self, *, student_bytes: int = 0, checkpoint: str | None = None, is_restart: bool = False
    ) -> None:
        """Raises SettingError where no checkpoint has room, nor what is saved when training has ended.

        `checkpoint` is the one that will be gone on from; with `is_restart`, the output folder is emptied
        before anything is saved.
        """
        is_saved_twice = self.is_fsdp_enabled and not saves_in_parts(self.accelerator)
        saved = bytes_saved(self.args, self.model, self._given_optimizer, is_saved_twice=is_saved_twice)
        saves = saves_to_come(self.args, self.logit_dataset, self.place_of_start(checkpoint))
        check_disk(self.args, saved, saves, student_bytes=student_bytes, is_restart=is_restart)
        self._disk_is_checked = True

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        self._place = self.place_of_start(resume_from_checkpoint)
        return super()._inner_training_loop(
            batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval
        )

    def place_of_start(self, checkpoint: str | None) -> Place:
        """Where a training begins that goes on from this checkpoint. Raises ReshardingError where processes
        were given those of unlike places."""
        place = place_of(checkpoint) or self._place_of_data()
        check_one_place(place, self.args.device)
        return place

    def _place_of_data(self) -> Place:
        """Where a training without a checkpoint begins."""
        return next_place(self.logit_dataset) if self.logit_dataset.is_just_loaded else self._beginning

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Count steps and epochs from the dataset's place, by the length of each epoch.

        So all epochs are trained to their end, or `max_steps` reached, on whatever processes a training goes
        on; the schedule counts on from the checkpoint's step.
        """
        _, *between, planned_steps = super().set_initial_training_values(args, dataloader)
        place, dataset = self._place, self.logit_dataset
        if args.max_steps > 0:
            num_epochs, max_steps = epochs_to_begin(args, dataset, place, planned_steps), planned_steps
        else:
            num_epochs = math.ceil(args.num_train_epochs)
            max_steps, planned_steps = total_steps(args, dataset, place), total_steps(args, dataset)
        if not args.process_index:
            self._say_steps(max_steps, planned_steps)
        return num_epochs, *between, max_steps

    def _say_steps(self, max_steps: int, planned_steps: int) -> None:
        """Where a training from this place has other steps than one from the beginning, or none."""
        num_steps, args = self._place.num_steps, self.args
        told = None
        if max_steps <= num_steps != planned_steps:
            whose = (
                f"the checkpoint of {num_steps} steps" if num_steps else "the state that the data were given"
            )
            end = (
                f"max_steps={max_steps}"
                if args.max_steps > 0
                else f"num_train_epochs={args.num_train_epochs:g}"
            )
            told = f"nothing is left to train: {whose} has all of {end} behind it; to train on, raise that"
        elif num_steps and max_steps != planned_steps:  # without steps, a state was loaded on purpose
            told = (
                f"the checkpoint's {num_steps} steps were of other batches than those of now: its training "
                f"ends after {max_steps} steps, with all {args.num_train_epochs:g} epochs of the data, where "
                f"one of the present batches alone takes {planned_steps}; the schedule counts on from step "
                f"{num_steps} of {max_steps}"
            )
        if told:
            warnings.warn(told, TrainingWarning, stacklevel=3)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(
                self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            write_place(folder, self._follower.saved)
            write_settings(folder, self._settings_of_training())
        super()._save_checkpoint(model, trial)

    def _settings_of_training(self) -> dict[str, Any]:
        return settings_of_training(self.args, self.store_losses, makes_optimizer=self._makes_optimizer)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """(epoch to begin with, 0): by the dataset's place, as the steps per epoch may be others now.

        Without a checkpoint every training begins with the data where the first one does, whatever was read
        since; a state that was loaded into the dataset is gone on from.
        """
        check_trainable(self.model)
        check_unchanged(self.args, self.loss_settings, self.logit_dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said at construction
            self._check_course()
        if not self._disk_is_checked:
            self.check_disk(checkpoint=resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            check_resumable(Path(resume_from_checkpoint), self._settings_of_training())
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        # The state of a checkpoint has its own intervals; those of the arguments are meant.
        self.state.compute_steps(self.args, max_steps)
        take_up_patience(self.callback_handler.callbacks, self.state)
        if resume_from_checkpoint is None:
            self.logit_dataset.return_to(self._place.epoch, self._place.consumed)
        else:
            take_up_place(Path(resume_from_checkpoint), self.logit_dataset)
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0  # finished; Trainer would take one step more
        return self.logit_dataset.epoch, 0

    def _run_epoch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **rest: Any
    ) -> None:
        """Give transformers the steps that are left of the epoch, which a resumed run may have begun.

        Otherwise the last, smaller accumulation of a resumed epoch would never be stepped.
        """
        self.logit_dataset.set_epoch(epoch)
        steps_left = self.logit_dataset.steps_left
        accumulation = self.args.gradient_accumulation_steps
        super()._run_epoch(
            epoch=epoch,
            steps_in_epoch=steps_left,
            num_update_steps_per_epoch=-(-steps_left // accumulation),
            **rest,
        )

    def _check_course(self) -> None:
        check_course(
            self.args,
            self.logit_dataset,
            evaluation_sets(self.eval_dataset),
            self.callback_handler.callbacks,
            has_own_metrics=self.compute_metrics is not None,
        )
