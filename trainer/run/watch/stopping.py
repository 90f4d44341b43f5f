"""A training that is to stop saves where it stands."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.run.watch.sigterm import StoppedError


class SavingStop(TrainerCallback):
    """Once asked on any process, saves a checkpoint after a step and ends the training by StoppedError.

    Goes before callbacks that look at whether a checkpoint is saved. A training at its last step is left to
    end.
    """

    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked
        self._asked_before: _Copied | None = None
        self._is_saved = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._is_saved = self._is_asked(args.device)
        control.should_save |= self._is_saved

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._is_saved:
            return
        if _is_distributed():
            torch.distributed.barrier()  # the first process may still be writing
        raise StoppedError(
            f"stopped by SIGTERM after step {state.global_step} of {state.max_steps}, of which "
            f"{args.output_dir} has a checkpoint; the same command goes on from it"
        )

    def _is_asked(self, device: torch.device) -> bool:
        """The same on all processes: whether any was asked by the end of the step before, which no process
        has to wait for; of a process alone, by now."""
        if not _is_distributed():
            return self._asked.is_set()
        asked = torch.full((), int(self._asked.is_set()), device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        before, self._asked_before = self._asked_before, _Copied(asked)
        return before is not None and bool(before.value())


class _Copied:
    """A tensor on its way to the host, so that reading it later waits for what was asked until then alone."""

    def __init__(self, there: Tensor) -> None:
        self._here, self._is_here = there, None
        if there.is_cuda:
            self._here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._here.copy_(there, non_blocking=True)
            self._is_here = torch.cuda.Event()
            self._is_here.record()

    def value(self) -> Tensor:
        if self._is_here is not None:
            self._is_here.synchronize()
        return self._here


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
