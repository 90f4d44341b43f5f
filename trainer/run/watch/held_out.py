"""The student's figures on held-out rows before and after training, for whoever draws a run's curves."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.hf.evaluation.calibration import CalibrationSums
from trainer.hf.trainer import OfflineDistillationTrainer

DRAWERS = "transformers.integrations."
"""Where the callbacks of TensorBoard and of trackers are defined."""


class HeldOutFigures(TrainerCallback):
    """Evaluates the student once it is trained: a tracker ends its run with the training.

    Goes before all other callbacks. On every process; those that draw write on the first alone.
    """

    def __init__(self, trainer: OfflineDistillationTrainer, before: dict[str, float | int] | None) -> None:
        self.after: dict[str, float | int] = {}
        self.calibration = CalibrationSums()
        self.ended_sec = time.monotonic()
        """`time.monotonic()` when the last step was done; before that, of the beginning."""
        self.tokens_before = 0
        """Tokens of the batches that earlier starts of the run have trained on."""
        self._trainer = trainer
        self._before = before
        self._evaluated_at: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.tokens_before = int(state.num_input_tokens_seen)
        if state.global_step == 0 and self._before is not None:
            self._draw(self._before, args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._evaluated_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.ended_sec = time.monotonic()
        self.after = self._trainer.evaluate_student(calibration=self.calibration).to_dict()
        if self._evaluated_at != state.global_step or args.load_best_model_at_end:
            self._draw(self.after, args, state, control)

    def _draw(
        self,
        figures: dict[str, float | int],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        logs = {f"eval_{name}": value for name, value in figures.items()}
        for callback in self._trainer.callback_handler.callbacks:
            if type(callback).__module__.startswith(DRAWERS):
                callback.on_log(args, state, control, logs=logs, model=self._trainer.model)  # type: ignore[call-arg]
