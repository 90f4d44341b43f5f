"""How a training run shows itself: a live bar in a terminal, a line per logged step elsewhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from logitstore.common.console import Console

SHOWN = (
    ("loss", "loss", ".3f"),
    ("distillation", "distillation", ".3f"),
    ("cross_entropy", "cross-entropy", ".3f"),
    ("top1_agreement", "top-1 agreement", ".1%"),
    ("learning_rate", "lr", ".2e"),
    ("fill", "fill", ".0%"),
    ("num_cut_rows", "label rows cut off", "d"),
)
"""What is shown of a logged step: its name in the log, its name for people, its format. Fill is the share of
the batches' places that hold tokens of sequences."""


class TrainingProgress(TrainerCallback):
    """Shows the progress of the first process only, on stderr, so that stdout is left to results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "eval_kl" in logs:
            told = f"KL {logs['eval_kl']:.4f}, top-1 agreement {logs['eval_top1_agreement']:.1%}"
            self._console.print(
                f"step {state.global_step}/{state.max_steps}, evaluation: {told}", soft_wrap=True
            )
        if "loss" not in logs:
            return
        shown = logs if logs.get("num_cut_rows") else {**logs, "num_cut_rows": None}
        words = ", ".join(
            f"{label} {shown[name]:{form}}" for name, label, form in SHOWN if shown.get(name) is not None
        )
        if self._bar is not None:
            self._bar.update(self._task, description=words)
        else:
            self._console.print(f"step {state.global_step}/{state.max_steps}: {words}", soft_wrap=True)

    def tell(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(line, soft_wrap=True, markup=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the bar, also where training broke off; calling it again does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def show_progress(trainer: Trainer, *, quiet: bool) -> TrainingProgress | None:
    """Replace what transformers shows, which prints dictionaries to stdout; None if `quiet`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if quiet:
        return None
    progress = TrainingProgress()
    trainer.add_callback(progress)
    return progress
