"""How many optimizer steps a training takes, and how many checkpoints it saves, from its beginning or from a
place of its data.

transformers takes all epochs to be as long as the first, and a step to be what it was when a checkpoint was
saved. Packed epochs differ by some rows, and a step has other sequences on other processes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from trainer.data.dataset import StreamingLogitDataset
from trainer.data.state import find_state
from trainer.hf.checkpoints import DATASET_STATE_NAME


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training stands: its optimizer steps so far, and the dataset's place."""

    num_steps: int = 0
    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True, slots=True)
class Saves:
    """How many checkpoints are saved."""

    least: int
    """Fewer than `most` of save_strategy="best": the first is the best so far, those after may be worse."""
    most: int


_BEGINNING = Place()


def total_steps(args: Any, dataset: StreamingLogitDataset, place: Place = _BEGINNING) -> int:
    """Optimizer steps of a training that goes on from a place, with those before."""
    return args.max_steps if args.max_steps > 0 else place.num_steps + steps_to_end(args, dataset, place)


def steps_to_end(args: Any, dataset: StreamingLogitDataset, place: Place) -> int:
    """Optimizer steps from a place to the end of `num_train_epochs`; 0 where it lies behind."""
    last = math.ceil(args.num_train_epochs) - 1
    if place.epoch > last:
        return 0
    if dataset.packing is None:  # all are alike, and may be as many as patience is left to end
        steps = (last - place.epoch) * _updates(args, dataset, last)
    else:
        steps = sum(_updates(args, dataset, epoch) for epoch in range(place.epoch + 1, last + 1))
    steps += _updates(args, dataset, place.epoch, place.consumed)
    whole = _updates(args, dataset, last)
    return max(0, steps - whole + steps_of_last_epoch(args.num_train_epochs, whole))


def steps_of_last_epoch(num_epochs: float, whole: int) -> int:
    """Of its `whole` steps, those that are within `num_epochs`.

    As transformers rounds them, all epochs at once: of 2.1 epochs of 10 steps it takes 21, where a tenth of
    10, rounded alone, is 2, as 2.1 - 2 is a little more than a tenth.
    """
    return math.ceil(num_epochs * whole) - (math.ceil(num_epochs) - 1) * whole


def epochs_to_begin(args: Any, dataset: StreamingLogitDataset, place: Place, max_steps: int) -> int:
    """Number of the last epoch that `max_steps` reach into, counted from 1."""
    epoch, left = place.epoch, max_steps - place.num_steps
    left -= _updates(args, dataset, epoch, place.consumed)
    if dataset.packing is None:  # all are alike
        return epoch + 1 + max(0, -(-left // max(1, _updates(args, dataset, epoch + 1))))
    while left > 0:
        epoch += 1
        left -= max(1, _updates(args, dataset, epoch))
    return epoch + 1


def saves_to_come(args: Any, dataset: StreamingLogitDataset, place: Place) -> Saves:
    """Checkpoints that a training which goes on from a place saves until it ends."""
    end, is_best = total_steps(args, dataset, place), args.save_strategy == SaveStrategy.BEST
    strategy, interval = args.save_strategy, args.save_steps
    if is_best:  # at each evaluation at most
        strategy, interval = args.eval_strategy, args.eval_steps
    most = 0
    if end > place.num_steps and strategy == SaveStrategy.EPOCH:
        is_over = not dataset.steps_from(place.epoch, place.consumed)
        most = epochs_to_begin(args, dataset, place, end) - place.epoch - is_over
    elif end > place.num_steps and strategy == SaveStrategy.STEPS:
        every = max(1, math.ceil(end * interval) if interval < 1 else int(interval))
        most = math.ceil(end / every) - place.num_steps // every
    return Saves(min(most, 0 if place.num_steps else 1) if is_best else most, most)


def next_place(dataset: StreamingLogitDataset) -> Place:
    """Where a training of what the dataset reads next begins.

    An epoch that was read to its end, or the ones after the first, are begun anew unless a state of them was
    loaded: somebody looked at the data.
    """
    if dataset.is_just_loaded or (dataset.epoch == 0 and dataset.steps_from(0, dataset.consumed)):
        return Place(0, dataset.epoch, dataset.consumed)
    return Place()


def place_of(checkpoint: str | Path | None) -> Place | None:
    """Where a checkpoint stands; None for none, and for one that does not say, which is refused later."""
    if checkpoint is None:
        return None
    try:
        state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        data = find_state(json.loads(Path(checkpoint, DATASET_STATE_NAME).read_text(encoding="utf-8")))
        return Place(int(state["global_step"]), int(data["epoch"]), int(data["consumed"]))
    except (OSError, ValueError, KeyError):
        return None


def _updates(args: Any, dataset: StreamingLogitDataset, epoch: int, consumed: int = 0) -> int:
    """Optimizer steps to the end of an epoch."""
    steps = dataset.steps_from(epoch, consumed)
    return -(-steps // args.gradient_accumulation_steps)
