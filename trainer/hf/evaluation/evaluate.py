"""How close a student is to its teacher, on records it has not seen.

Shape legend: B batch, T tokens, H hidden size, V vocabulary, N rows that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.errors import NotFiniteError, SettingError
from trainer.hf.evaluation.calibration import NUM_BINS, CalibrationSums
from trainer.hf.heads import MODEL_KEYS, Head, head_replaced
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

PIECE_TOKENS = 256
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the label rows; everything at temperature 1, logarithms natural."""

    num_sequences: int
    """Sequences with label rows."""
    num_rows: int
    kl: float
    """KL(teacher || student) over the stored entries and one bucket for the rest, with the exact tail."""
    cross_entropy: float
    """-log q of the actual tokens."""
    top1_agreement: float
    """Share of rows in which student and teacher have the same top token."""
    accuracy: float
    """Share of rows in which the student's top token is the actual one."""
    calibration_error: float
    """Expected calibration error of the student's top token, |accuracy - confidence| by bins."""
    teacher_mass: float
    """Teacher's mass on the stored entries."""
    student_mass: float
    """Student's mass on the same entries."""
    mass_beyond_tokenizer: float | None = None
    """Student's mass, over all its logits, on ids that no tokenizer has: of padded vocabularies. None where
    the tokenizer's size is not known."""
    acceptance_at_least: float | None = None
    """Share of its tokens that the teacher would accept of the student as a draft model (speculative decoding
    at temperature 1: the sum of min(p, q) over all ids), counting the stored ids alone. None in metrics of
    earlier versions."""
    acceptance_at_most: float | None = None
    """The same with the smaller of both tails added: the share lies between the two."""

    def to_dict(self) -> dict[str, float | int]:
        """The figures that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class _Sums:
    """What adds up over rows, batches and processes."""

    def __init__(self, tokenizer_size: int | None, calibration: CalibrationSums | None) -> None:
        self.tokenizer_size = tokenizer_size
        self.calibration = calibration
        self.num_sequences = 0
        self.rows_9 = torch.zeros(9, dtype=torch.float64)
        """Rows, then sums over rows: KL, cross-entropy, agreement, teacher's mass, student's mass, student's
        mass beyond the tokenizer, least and most acceptance."""
        self.bins_3C = torch.zeros(3, NUM_BINS, dtype=torch.float64)
        """By bin of confidence: rows, rows whose top token is the actual one, sum of confidences."""

    def add_piece(
        self, logits_TV: Tensor, labels_T: Tensor, targets: TeacherTargets, settings: LossSettings
    ) -> None:
        """Rows of one piece; its first label has its prediction in the piece before and does not count."""
        output = topk_distillation_loss(logits_TV[None], labels_T[None], targets, settings)
        index_N = (labels_T[1:] != settings.ignore_index).nonzero().squeeze(1)
        if not len(index_N):
            return
        logits_NV, labels_N = logits_TV[:-1][index_N], labels_T[1:][index_N]
        probability_NV = logits_NV[:, : settings.vocab_size].softmax(dim=1)
        metrics = output.metrics
        means_8 = (
            output.distillation,
            output.cross_entropy,
            metrics.top1_agreement,
            metrics.teacher_mass,
            metrics.student_mass,
            self._mass_beyond(logits_NV),
            *_acceptance(probability_NV, targets, index_N),
        )
        means_9 = torch.cat([torch.ones(1), torch.stack(means_8).cpu()])
        self.rows_9 += len(index_N) * means_9.double()
        if not self.rows_9.isfinite().all():
            return  # such confidences are in no bin; `evaluation` refuses, on every process
        if self.calibration is not None:
            self.calibration.add(logits_NV[:, : settings.vocab_size], labels_N)
        confidence_N, top_N = probability_NV.max(dim=1)
        sure_N, right_N = torch.stack([confidence_N, (top_N == labels_N).to(confidence_N)]).cpu().double()
        bin_N = (sure_N.float() * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        for row, values_N in enumerate((torch.ones_like(right_N), right_N, sure_N)):
            self.bins_3C[row].index_add_(0, bin_N, values_N)

    def _mass_beyond(self, logits_NV: Tensor) -> Tensor:
        """Mean over rows; exactly 0 for a student without such ids."""
        if self.tokenizer_size is None or self.tokenizer_size >= logits_NV.shape[1]:
            return logits_NV.new_zeros(())
        beyond_N = logits_NV[:, self.tokenizer_size :].logsumexp(dim=1) - logits_NV.logsumexp(dim=1)
        return beyond_N.exp().mean()

    def add_processes(self, device: torch.device) -> None:
        if self.calibration is not None:
            self.calibration.add_processes(device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            sequences = torch.tensor([self.num_sequences], dtype=torch.float64)
            flat = torch.cat([sequences, self.rows_9, self.bins_3C.flatten()]).to(device)
            torch.distributed.all_reduce(flat)
            flat = flat.cpu()
            self.num_sequences = int(flat[0])
            self.rows_9, self.bins_3C = flat[1:10], flat[10:].view(3, NUM_BINS)

    def evaluation(self) -> Evaluation:
        num_rows = int(self.rows_9[0])
        if not num_rows:
            raise SettingError(
                "there is no label row to evaluate on: no record is held out (raise the fraction "
                "of HeldOut; in a configuration data.held_out_fraction), their labels are all masked, or "
                "max_length cuts them off"
            )
        means_8 = (self.rows_9[1:] / num_rows).tolist()
        kl, cross_entropy, agreement, teacher, student, beyond, at_least, at_most = means_8
        if not all(map(math.isfinite, means_8)):
            raise NotFiniteError(
                f"the student's figures on the records it is evaluated on are no finite numbers (KL {kl}, "
                f"cross-entropy {cross_entropy}): its training diverged, or its weights were broken before; "
                "train it anew with a lower learning_rate (in a configuration training.learning_rate)"
            )
        right_C, confidence_C = self.bins_3C[1:]
        return Evaluation(
            num_sequences=self.num_sequences,
            num_rows=num_rows,
            kl=kl,
            cross_entropy=cross_entropy,
            top1_agreement=agreement,
            accuracy=float(right_C.sum() / num_rows),
            calibration_error=float((right_C - confidence_C).abs().sum() / num_rows),
            teacher_mass=teacher,
            student_mass=student,
            mass_beyond_tokenizer=None if self.tokenizer_size is None else beyond,
            acceptance_at_least=at_least,
            acceptance_at_most=at_most,
        )


def _acceptance(probability_NV: Tensor, targets: TeacherTargets, index_N: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the mean of sum min(p, q): over stored ids, and with the smaller of both tails.

    `index_N` has the places of the rows in the targets without their first.

    Teacher's entries that the student has no id for belong to the teacher's tail.
    """
    ids_NK, logprobs_NK = targets.token_ids_BTK[0, 1:][index_N], targets.logprobs_BTK[0, 1:][index_N]
    p_NK = torch.where(targets.mask_BTK[0, 1:][index_N], logprobs_NK.exp(), 0.0)
    is_shared_NK = (ids_NK < probability_NV.shape[1]) & (p_NK > 0)
    q_NK = probability_NV.gather(1, torch.where(is_shared_NK, ids_NK, 0)) * is_shared_NK
    lower_N = torch.minimum(p_NK, q_NK).sum(dim=1)
    tail_p_N = targets.tail_logprob_BT[0, 1:][index_N].exp() + (p_NK * ~is_shared_NK).sum(dim=1)
    tail_q_N = (1 - q_NK.sum(dim=1)).clamp(min=0)
    return lower_N.mean(), (lower_N + torch.minimum(tail_p_N, tail_q_N)).mean()


def evaluation_batches(
    dataset: StreamingLogitDataset, collator: DistillationCollator, max_sequences: int | None
) -> Iterator[dict[str, Tensor]]:
    """Padded batches at temperature 1, the same ones at each call, and as many on every process.

    Labels of segments with weight 0 do not count; all others count alike, whatever their weight in training.

    Sharded models need all processes to call them equally often: one that gets nothing of the last step
    gets a batch without labels instead.
    """
    settings = collator.settings
    plain = DistillationCollator(
        CollateSettings(
            pad_token_id=settings.pad_token_id,
            max_length=settings.token_limit,
            pad_to_multiple_of=settings.pad_to_multiple_of,
            student_vocab_size=settings.student_vocab_size,
            segment_weights=settings.segment_weights,
        )
    )
    num_steps = evaluation_steps(dataset, max_sequences)
    judged = dataset.judged(max_sequences)
    yield from LogitDataLoader(judged, plain)
    if judged.steps_per_epoch < num_steps:
        batch = plain([judged[0]])
        yield {**batch, "labels": torch.full_like(batch["labels"], settings.ignore_index)}


def evaluation_steps(dataset: StreamingLogitDataset, max_sequences: int | None) -> int:
    """Batches of an evaluation, the same number on every process."""
    judged = dataset.judged(max_sequences)
    return -(-judged.epoch_length // judged.step_size)


class EvaluationLoader:
    """`evaluation_batches` as a loader, which transformers' own loop asks what it reads, and how much."""

    def __init__(
        self,
        dataset: StreamingLogitDataset,
        num_steps: int,
        batches: Callable[[], Iterator[dict[str, Tensor]]],
    ) -> None:
        self.dataset = dataset
        self.batch_size = dataset.batch_size
        self._num_steps = num_steps
        self._batches = batches

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._batches()


def tokenizer_size_of(dataset: StreamingLogitDataset) -> int | None:
    """Ids of the tokenizer that labeled the stores, the largest of several; None if one does not say it."""
    sizes = [source.manifest.tokenizer.vocab_size for source in dataset.sources]
    return max(sizes) if all(sizes) else None


@torch.no_grad()
def evaluate(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    head: Head | None = None,
    vocab_size: int | None = None,
    tokenizer_size: int | None = None,
    calibration: CalibrationSums | None = None,
) -> Evaluation:
    """Evaluate a causal language model on padded batches whose targets are at temperature 1.

    With a `head`, logits exist for PIECE_TOKENS tokens at a time only. `vocab_size` is the number of real
    ids where vocabularies are padded, as in LossSettings; `tokenizer_size` is that of the tokenizer, for
    `mass_beyond_tokenizer` (see `tokenizer_size_of`); `calibration` gets the same rows. Under
    torch.distributed each process gives its own batches and gets the result of all.

    Raises SettingError without label rows, and NotFiniteError where a figure is infinite or no number.
    """
    settings = LossSettings(alpha=1.0, vocab_size=vocab_size, foreign_ids="tail" if vocab_size else "error")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    sums = _Sums(tokenizer_size, calibration)
    try:
        for batch in batches:
            on_device = {key: value.to(device) for key, value in batch.items()}
            sums.num_sequences += int((batch["labels"] != settings.ignore_index).any(dim=1).sum())
            _add_batch(sums, model, on_device, head, settings)
    finally:
        model.train(was_training)
    sums.add_processes(device)
    return sums.evaluation()


def _add_batch(
    sums: _Sums, model: Any, batch: Mapping[str, Tensor], head: Head | None, settings: LossSettings
) -> None:
    inputs = {key: batch[key] for key in MODEL_KEYS if key in batch}
    if head is None:
        _add_rows(sums, model(**inputs, use_cache=False).logits, Tensor.float, batch, settings)
        return
    with head_replaced(head, lambda hidden_BTH: _add_rows(sums, hidden_BTH, head.logits, batch, settings)):
        model(**inputs, use_cache=False)


def _add_rows(
    sums: _Sums,
    outputs_BT: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    batch: Mapping[str, Tensor],
    settings: LossSettings,
) -> None:
    """`to_logits` makes float32 [T, V] of the outputs at some tokens of a sequence."""
    targets = TeacherTargets.from_batch(batch)
    for row in range(outputs_BT.shape[0]):
        for start in range(0, outputs_BT.shape[1] - 1, PIECE_TOKENS):
            piece = slice(start, start + PIECE_TOKENS + 1)
            logits_TV = to_logits(outputs_BT[row, piece])
            sums.add_piece(logits_TV, batch["labels"][row, piece], _slice(targets, row, piece), settings)


def _slice(targets: TeacherTargets, row: int, piece: slice) -> TeacherTargets:
    return TeacherTargets(
        token_ids_BTK=targets.token_ids_BTK[row : row + 1, piece],
        logprobs_BTK=targets.logprobs_BTK[row : row + 1, piece],
        tail_logprob_BT=targets.tail_logprob_BT[row : row + 1, piece],
        mask_BTK=targets.mask_BTK[row : row + 1, piece],
    )
