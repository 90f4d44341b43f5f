"""The records that go into a loss and come out of it.

Shape legend: B batch, T tokens, N rows that count (labels other than `ignore_index`), K stored entries
of a row, V vocabulary. Logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.loss.loss_settings import LossSettings


@dataclass(slots=True)
class TeacherTargets:
    """The teacher's distributions of a batch, label-aligned: index t is the distribution of `labels[:, t]`.

    All masses are at the temperature of the loss. Nothing is shifted here: the loss shifts, once.
    """

    token_ids_BTK: Tensor
    """int64, stored ids; distinct within a row where `mask_BTK` is set, anything elsewhere."""
    logprobs_BTK: Tensor
    """float32, log p of the stored ids, -inf on padding."""
    tail_logprob_BT: Tensor
    """float32, log of the mass outside the stored ids; -inf where there is none."""
    mask_BTK: Tensor
    """bool, which entries are real. A row without any takes no part in distillation."""

    def __post_init__(self) -> None:
        shape_BTK = self.token_ids_BTK.shape
        if len(shape_BTK) != 3 or self.logprobs_BTK.shape != shape_BTK or self.mask_BTK.shape != shape_BTK:
            raise ValueError(
                f"Teacher ids {tuple(shape_BTK)}, logprobs {tuple(self.logprobs_BTK.shape)} and mask "
                f"{tuple(self.mask_BTK.shape)} must all be [batch, tokens, entries]."
            )
        if self.tail_logprob_BT.shape != shape_BTK[:2]:
            raise ValueError(
                f"The teacher's tail {tuple(self.tail_logprob_BT.shape)} must be [batch, tokens], "
                f"{tuple(shape_BTK[:2])}: one log mass per row."
            )

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> TeacherTargets:
        """Take the `teacher_*` keys of a collated batch."""
        return cls(
            token_ids_BTK=batch["teacher_token_ids"],
            logprobs_BTK=batch["teacher_logprobs"],
            tail_logprob_BT=batch["teacher_tail_logprob"],
            mask_BTK=batch["teacher_mask"],
        )

    def to(self, device: torch.device | str) -> TeacherTargets:
        return TeacherTargets(
            token_ids_BTK=self.token_ids_BTK.to(device),
            logprobs_BTK=self.logprobs_BTK.to(device),
            tail_logprob_BT=self.tail_logprob_BT.to(device),
            mask_BTK=self.mask_BTK.to(device),
        )


@dataclass(frozen=True, slots=True)
class LossRows:
    """The N rows of a batch that count, laid flat. `position_N` holds the one shift between the two sides."""

    position_N: Tensor
    """int64 in [0, B T): where the student predicts the label, one before it."""
    labels_N: Tensor
    """int64."""
    token_ids_NK: Tensor
    """int64; K is 0 without a teacher. Padding repeats a real id of its row (0 if the row has none)."""
    logprobs_NK: Tensor
    """-inf on padding."""
    tail_logprob_N: Tensor
    mask_NK: Tensor
    weight_N: Tensor | None = None
    """float, positive: by how much each row's loss counts; None: all alike, by 1."""

    def __len__(self) -> int:
        return self.labels_N.shape[0]

    def slice(self, start: int, stop: int) -> LossRows:
        return LossRows(
            position_N=self.position_N[start:stop],
            labels_N=self.labels_N[start:stop],
            token_ids_NK=self.token_ids_NK[start:stop],
            logprobs_NK=self.logprobs_NK[start:stop],
            tail_logprob_N=self.tail_logprob_N[start:stop],
            mask_NK=self.mask_NK[start:stop],
            weight_N=None if self.weight_N is None else self.weight_N[start:stop],
        )

    @property
    def total_weight(self) -> Tensor | int:
        """Sum of the rows' weights; their number where all count alike."""
        return len(self) if self.weight_N is None else self.weight_N.sum()


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Means over the local rows that count and have a teacher, detached; zero where none has."""

    num_rows: Tensor
    """int64, rows that count, each counted once whatever its weight."""
    num_teacher_rows: Tensor
    """int64, those of them that the means are over: all, or none without a teacher's rows."""
    weight: Tensor
    """Sum of the rows' weights; their number where all count alike."""
    teacher_mass: Tensor
    """Teacher's mass on the stored ids, at the temperature of the loss; NaN where the loss has no tail
    (`LossSettings.has_tail`)."""
    student_mass: Tensor
    """Student's mass on the same ids."""
    tail_kl: Tensor
    """KL between the two-class distributions (stored, tail): what the bucket adds to the renormalised KL.
    NaN as above."""
    top1_agreement: Tensor
    """Share of rows in which no logit of the student exceeds that of the teacher's top id."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss` = alpha `distillation` + (1 - alpha) `cross_entropy`, each a sum over rows / the item count."""

    loss: Tensor
    """Scalar, the only one with a gradient."""
    distillation: Tensor
    cross_entropy: Tensor
    metrics: LossMetrics


def select_rows(
    labels_BT: Tensor,
    targets: TeacherTargets | None,
    settings: LossSettings,
    vocab_size: int,
    weights_BT: Tensor | None = None,
) -> LossRows:
    """Pick the rows that count and shift once: the student's output at t - 1 is held against label t.

    Labels at t = 0 have no prediction and never count. `vocab_size` is the width of the student's head;
    `weights_BT`, float and positive where labels count, stands at the labels' places.
    """
    _check(labels_BT, targets, settings)
    counts_BT = labels_BT != settings.ignore_index
    counts_BT[:, 0] = False
    index_N = counts_BT.flatten().nonzero().squeeze(1)
    labels_N = labels_BT.flatten()[index_N]
    if targets is None:
        none_NK = torch.empty(len(index_N), 0, device=labels_BT.device)
        rows = LossRows(
            index_N - 1, labels_N, none_NK.long(), none_NK, none_NK.new_zeros(len(index_N)), none_NK.bool()
        )
    else:
        mask_NK = targets.mask_BTK.flatten(0, 1)[index_N]
        rows = LossRows(
            position_N=index_N - 1,
            labels_N=labels_N,
            token_ids_NK=targets.token_ids_BTK.flatten(0, 1)[index_N].long(),
            logprobs_NK=targets.logprobs_BTK.flatten(0, 1)[index_N].masked_fill(~mask_NK, -torch.inf),
            tail_logprob_N=targets.tail_logprob_BT.flatten()[index_N],
            mask_NK=mask_NK,
        )
    if weights_BT is not None:
        rows = replace(rows, weight_N=weights_BT.flatten()[index_N])
    _check_ids(rows, settings, vocab_size)
    return _without_padding_ids(_handle_foreign_ids(rows, settings, vocab_size))


def _check(labels_BT: Tensor, targets: TeacherTargets | None, settings: LossSettings) -> None:
    if targets is None and settings.alpha > 0:
        raise ValueError(f"alpha={settings.alpha} needs teacher targets; pass them, or set alpha=0.")
    if targets is not None and targets.token_ids_BTK.shape[:2] != labels_BT.shape:
        raise ValueError(
            f"Teacher rows {tuple(targets.token_ids_BTK.shape[:2])} and labels {tuple(labels_BT.shape)} "
            "differ: both must be [batch, tokens] and label-aligned, neither of them shifted."
        )


def _check_ids(rows: LossRows, settings: LossSettings, vocab_size: int) -> None:
    """Refuse what a GPU would end at by an assertion of its own, and with it the process; one wait for it."""
    if torch.compiler.is_compiling() or not len(rows):
        return
    found = [*rows.labels_N.long().aminmax()]
    if rows.mask_NK.numel():
        found += torch.where(rows.mask_NK, rows.token_ids_NK, 0).aminmax()
    smallest_label, largest_label, *stored = torch.stack(found).tolist()
    if smallest_label < 0:
        raise ValueError(
            f"The label {smallest_label} is no id and not the ignore_index of the loss, "
            f"{settings.ignore_index}; give labels that do not count that value, or set ignore_index to it."
        )
    if largest_label >= vocab_size:
        raise ValueError(
            f"The label {largest_label} is beyond the {vocab_size} ids of the student that take part in the "
            "loss. Give vocab_size the number of ids of the tokenizer, and a student that has as many logits."
        )
    smallest_id, largest_id = stored or (0, 0)
    if smallest_id < 0:
        raise ValueError(
            f"Stored id {smallest_id} is no id, and mask_BTK says that it is an entry; let the mask be False "
            "where a row has no entry."
        )
    if largest_id >= vocab_size and settings.foreign_ids == "error":
        raise ValueError(
            f"Stored id {largest_id} is beyond the student's {vocab_size} ids. If the teacher's vocabulary "
            "is only padded, set foreign_ids='tail'; otherwise the tokenizers differ."
        )


def _handle_foreign_ids(rows: LossRows, settings: LossSettings, vocab_size: int) -> LossRows:
    """Fold the mass of stored ids that the student lacks into the tail, where that is asked for."""
    if rows.mask_NK.numel() == 0 or settings.foreign_ids == "error":
        return rows
    foreign_NK = rows.mask_NK & (rows.token_ids_NK >= vocab_size)
    lost_N = torch.logsumexp(rows.logprobs_NK.masked_fill(~foreign_NK, -torch.inf), dim=1)
    return replace(
        rows,
        logprobs_NK=rows.logprobs_NK.masked_fill(foreign_NK, -torch.inf),
        tail_logprob_N=torch.logaddexp(rows.tail_logprob_N, lost_N),
        mask_NK=rows.mask_NK & ~foreign_NK,
    )


def _without_padding_ids(rows: LossRows) -> LossRows:
    """Let padding repeat a real id of its row, so that no id outside the row can be taken for stored."""
    if rows.mask_NK.numel() == 0:
        return rows
    first_real_N1 = rows.mask_NK.int().argmax(dim=1, keepdim=True)
    real_id_N1 = rows.token_ids_NK.gather(1, first_real_N1) * rows.mask_NK.any(dim=1, keepdim=True)
    return replace(rows, token_ids_NK=torch.where(rows.mask_NK, rows.token_ids_NK, real_id_N1))
