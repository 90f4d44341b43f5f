"""Losses that differ by store: labels of each kind apart, and the parts added up to one loss.

Shape legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.loss.loss_inputs import LossMetrics, LossOutput, TeacherTargets
from trainer.loss.loss_settings import LossSettings


@dataclass(frozen=True, slots=True)
class LossTerm:
    """Labels of a batch that one loss is for."""

    settings: LossSettings
    labels_BT: Tensor
    """int64; `ignore_index` where a label is of another term."""
    targets: TeacherTargets | None
    """None without teacher's labels, and where the store learns its text alone: such rows are not read."""


def loss_terms(
    batch: Mapping[str, Tensor], settings: LossSettings, store_settings: Sequence[LossSettings]
) -> list[LossTerm]:
    """The different losses of a batch, at least one. Stores with the same settings make one term.

    `batch` has `loss_store` if `store_settings` are given, as `CollateSettings.store_temperatures` adds it.
    """
    targets = TeacherTargets.from_batch(batch) if "teacher_token_ids" in batch else None
    if not store_settings:
        return [LossTerm(settings, batch["labels"], targets)]
    distinct = list(dict.fromkeys(store_settings))
    term_of_store = torch.tensor([distinct.index(one) for one in store_settings])
    term_BT = term_of_store.to(batch["loss_store"].device)[batch["loss_store"]]
    terms = [
        LossTerm(
            one,
            batch["labels"].masked_fill(term_BT != index, one.ignore_index),
            targets if one.alpha else None,
        )
        for index, one in enumerate(distinct)
    ]
    some = [term for term in terms if bool((term.labels_BT[:, 1:] != term.settings.ignore_index).any())]
    return some or terms[:1]


def added_up(outputs: Sequence[LossOutput]) -> LossOutput:
    """One output for the terms of a batch, all divided by the same number of labels."""
    if len(outputs) == 1:
        return outputs[0]
    rows = torch.stack([output.metrics.num_rows for output in outputs])
    teacher_rows = torch.stack([output.metrics.num_teacher_rows for output in outputs])
    share = teacher_rows / teacher_rows.sum().clamp(min=1)

    def mean(name: str) -> Tensor:
        values = torch.stack([getattr(output.metrics, name) for output in outputs])
        return (values * share.to(values.dtype)).sum()

    names = ("teacher_mass", "student_mass", "tail_kl", "top1_agreement")
    return LossOutput(
        loss=torch.stack([output.loss for output in outputs]).sum(),
        distillation=torch.stack([output.distillation for output in outputs]).sum(),
        cross_entropy=torch.stack([output.cross_entropy for output in outputs]).sum(),
        metrics=LossMetrics(
            num_rows=rows.sum(),
            num_teacher_rows=teacher_rows.sum(),
            weight=torch.stack([output.metrics.weight for output in outputs]).sum(),
            **{name: mean(name) for name in names},
        ),
    )
