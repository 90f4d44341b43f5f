"""A DataLoader over a StreamingLogitDataset that knows where its consumer is."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from logitstore.codec import loops
from logitstore.common.store_warning import StoreWarning
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.reading import usable_cores
from trainer.data.samples import Sample
from trainer.data.worker_choice import LOOKED_STEPS, useful_workers

_FROM_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback ")


def _sentence_of_worker(error: Exception) -> str | None:
    """What the error said in its loader worker, of which torch makes a text with its traceback; None for one
    that is of no worker.
    """
    text = str(error.args[0]) if error.args else ""
    found = _FROM_WORKER.match(text)
    return re.split(rf"(?m)^(?:\w+\.)*{found[1]}: ", text)[-1].rstrip() if found else None


def _outlive_sigterm_of_others(_: int) -> None:
    """Slurm sends SIGTERM to every process of a job, and the one that trains may want to save where it
    stands; without its workers it would fail first. A worker is ended by its parent's alone, at once, as by
    torch's own handler, and ends by itself once its parent is gone.

    Elsewhere than on Linux no process learns who sent it a signal, and a worker ends at any; so may one
    that is not forked, as threads of its imports take the signal.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


class LogitDataLoader(DataLoader[Any]):
    """Batches of the dataset's `batch_size`, in the dataset's order for any number of workers.

    It takes fewer workers than `num_workers` where more would decode the same blocks, and says so.

    `state_dict` is the dataset's, exact at every batch. accelerate takes this loader for one it has
    prepared already and leaves it alone: the dataset divides the data among ranks by itself. Moving
    batches to a device is then the caller's business (transformers' Trainer does it).
    """

    _is_accelerate_prepared = True

    def __init__(
        self,
        dataset: StreamingLogitDataset,
        collate_fn: Callable[[Sequence[Sample]], Any],
        *,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
        multiprocessing_context: str | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=dataset.batch_size,
            collate_fn=collate_fn,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            pin_memory=pin_memory,
            multiprocessing_context=multiprocessing_context,
            worker_init_fn=_outlive_sigterm_of_others,
            # Each iteration draws a seed for its workers. From torch's own random numbers it would shift the
            # student's dropout, and a resumed run, which begins one iteration more, would be another.
            generator=torch.Generator(),
        )
        self.logit_dataset = dataset
        self._asked_workers = num_workers

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is an iterator too
        # Lazily, inside track(): workers are forked with the place at which this iteration begins.
        yield from self.logit_dataset.track(self._batches())

    def _batches(self) -> Iterator[Any]:
        if self._asked_workers > 1:
            self.num_workers = self._useful_workers()
        # Workers are new in every epoch: what they are forked with they need not load again.
        if self.num_workers and self.logit_dataset.num_entries >= loops.LOAD_AFTER_ENTRIES:
            loops.use_compiled_loops()
        try:
            yield from super().__iter__()
        except Exception as error:
            sentence = _sentence_of_worker(error)
            if sentence is None:
                raise
            raise type(error)(sentence) from error

    def _useful_workers(self) -> int:
        steps = self.logit_dataset.shards_by_step(LOOKED_STEPS)
        found = useful_workers(steps, self._asked_workers, usable_cores())
        if found < self._asked_workers:
            warnings.warn(
                f"{found} of {self._asked_workers} loader workers are used: more would decode the same "
                "blocks of the same shards, each for itself",
                StoreWarning,
                stacklevel=2,
            )
        return found

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.logit_dataset.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        self.logit_dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.logit_dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.logit_dataset.load_state_dict(state)
