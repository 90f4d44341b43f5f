"""Whether any label counts: loss masks, weights of 0 and limits on length may leave none.

A training would then go on at a loss of 0, and an evaluation fail when it comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.order import share_of_epoch
from trainer.errors import GuardError, TrainingWarning
from trainer.hf.checks.lengths import check_lengths
from trainer.hf.checks.processes import check_batch_size
from trainer.hf.evaluation.evaluate import evaluation_batches

_REASONS = "loss masks, segments of weight 0 and limits on length"


def check_labels(
    args: Any,
    train_dataset: StreamingLogitDataset,
    sets: Mapping[str, StreamingLogitDataset],
    *,
    given: CollateSettings,
    used: CollateSettings,
    context: int | None,
) -> None:
    """Raises GuardError and ValueError for a dataset without a label that counts, and warns of labels that
    are cut off; `sets` are those for evaluation, by name.

    `given` are settings as somebody set them, which is what is named; `used` has the student's limits too.
    """
    with warnings.catch_warnings():
        if args.process_index:  # the first process says it for all
            warnings.simplefilter("ignore")
        check_lengths(train_dataset, given, context, purpose="training")
        for name, dataset in sets.items():
            check_lengths(dataset, given, context, purpose=f"evaluation {name}".strip())
            check_batch_size(args, dataset)
    check_learned(train_dataset, used)
    for name, dataset in sets.items():
        check_judged(
            evaluation_batches(dataset, DistillationCollator(used), args.max_eval_sequences),
            used,
            purpose=f"evaluation {name}".strip(),
            device=args.device,
        )


def check_learned(dataset: StreamingLogitDataset, settings: CollateSettings) -> None:
    """Raises GuardError for a store of the training dataset of which no label counts, or nothing is read.

    Reads each store up to the first label that does.
    """
    plain = DistillationCollator(
        replace(
            settings, max_length=settings.token_limit, pack_length=None, packed_attention=None,
            with_teacher=False, store_temperatures=(), count_tokens=False, student_vocab_size=None,
        )
    )  # fmt: skip
    first = 0
    for source, weight in zip(dataset.sources, dataset.weights, strict=True):
        length = sum(source.lengths)
        if not length and weight and dataset.topology.rank == 0:
            warnings.warn(
                f"{source.uri} adds nothing to training: it is empty, its selection (where, ids) leaves none "
                "of its sequences, or all are held out; leave it out if that is meant",
                TrainingWarning,
                stacklevel=2,
            )
        if length and weight and not any(share_of_epoch(length, weight)):
            raise GuardError(
                f"the weight {weight:g} of {source.uri} leaves none of its {length} sequences to an epoch; "
                f"give at least {1 / length:.2g}, which is one of them, or 0 to leave the store out"
            )
        indices = range(first, first + length)
        if length and not any(_has_label(plain([dataset[index]]), settings) for index in indices):
            raise GuardError(
                f"no label of {source.uri} counts: {_REASONS} leave none of its {length} sequences, so "
                "nothing is learned from it; leave the store out, or change these"
            )
        first += length


def check_judged(
    batches: Iterable[Mapping[str, Tensor]], settings: CollateSettings, *, purpose: str, device: torch.device
) -> None:
    """Raises GuardError, on all processes alike, if no label of the batches of an evaluation counts."""
    found = torch.tensor(int(any(_has_label(batch, settings) for batch in batches)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(found)
    if not found:
        raise GuardError(
            f"no label for {purpose} counts: {_REASONS} leave none (max_eval_sequences takes some of "
            "the sequences alone), so there is nothing to judge a student by; give another set, or "
            "change these"
        )


def _has_label(batch: Mapping[str, Tensor], settings: CollateSettings) -> bool:
    return bool((batch["labels"][:, 1:] != settings.ignore_index).any())
