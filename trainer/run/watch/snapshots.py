"""Snapshots of the student during training, of a few held-out sequences, for the page that shows it learn.

The format is that of `logitstore.students.snapshots`. Shape legend: T tokens, H hidden size, V vocabulary,
N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from logitstore.errors import StoreError
from logitstore.records import LabelRows
from logitstore.students.snapshots import (
    SNAPSHOTS_NAME,
    FollowedSequence,
    Snapshots,
    StudentRows,
    read_snapshots,
    write_snapshots,
)
from trainer.batch.collate import DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.samples import Sample
from trainer.hf.evaluation.evaluate import PIECE_TOKENS
from trainer.hf.heads import MODEL_KEYS, head_replaced
from trainer.hf.trainer import OfflineDistillationTrainer

MAX_ROWS = 512
"""Label rows of one sequence that are followed, from its first on."""


class SnapshotTaker(TrainerCallback):
    """Takes a snapshot before training, after it, and between by `steps` or at evaluations and saves.

    Every process computes it, as sharded models need all of them; the first writes it.
    """

    def __init__(
        self,
        trainer: OfflineDistillationTrainer,
        held_out: StreamingLogitDataset,
        folder: Path,
        *,
        num_sequences: int,
        steps: int | None,
    ) -> None:
        """Follows `num_sequences` sequences evenly spaced in `held_out`, or all where it has fewer."""
        self._trainer, self._folder, self._steps = trainer, folder, steps
        count = min(num_sequences, held_out.num_sequences)
        self._samples = [held_out[place * held_out.num_sequences // count] for place in range(count)]
        self._uris = [held_out.sources[sample.store].uri for sample in self._samples]
        self._taken: Snapshots | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._taken = self._resumed(state.global_step) if state.global_step else None
        if self._taken is None:
            (self._folder / SNAPSHOTS_NAME).unlink(missing_ok=True)
        self._take(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._steps is not None and state.global_step % self._steps == 0:
            self._take(state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._take_between(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._take_between(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._take(state.global_step)  # also where it was taken: the best student may have been loaded since

    def _take_between(self, step: int) -> None:
        if self._steps is None and (self._taken is None or step not in self._taken.steps):
            self._take(step)

    def _take(self, step: int) -> None:
        limit = self._trainer.collator.settings.token_limit
        model: Any = self._trainer.model
        was_training = model.training
        model.eval()
        try:
            found = [self._rows_of(model, sample, limit) for sample in self._samples]
        finally:
            model.train(was_training)
        width = model.get_output_embeddings().weight.shape[0]
        size = self._trainer.loss_settings.vocab_size or width
        taken = self._taken or Snapshots(
            (),
            tuple(
                FollowedSequence(
                    uri, sample.sequence.record_id, sample.sequence.sample_index,
                    sample.labels.temperatures, size, (),
                )
                for uri, sample in zip(self._uris, self._samples, strict=True)
            ),
        )  # fmt: skip
        self._taken = taken.with_step(step, found)
        if self._trainer.is_world_process_zero():
            write_snapshots(self._taken, self._folder)

    def _resumed(self, step: int) -> Snapshots | None:
        """What an earlier start of this run took of the same sequences; None where it took none."""
        try:
            earlier = read_snapshots(self._folder).until(step)
        except (FileNotFoundError, StoreError):
            return None
        then = [(one.store, one.record_id, one.sample_index) for one in earlier.sequences]
        now = [
            (uri, sample.sequence.record_id, sample.sequence.sample_index)
            for uri, sample in zip(self._uris, self._samples, strict=True)
        ]
        return earlier if earlier.steps and then == now else None

    @torch.no_grad()
    def _rows_of(self, model: Any, sample: Sample, token_limit: int | None) -> StudentRows:
        settings = self._trainer.collator.settings
        plain = replace(
            settings,
            max_length=token_limit, pack_length=None, packed_attention=None, with_teacher=False,
            store_temperatures=(), count_tokens=False,
        )  # fmt: skip
        batch = DistillationCollator(plain)([sample])
        device = next(model.parameters()).device
        inputs = {key: batch[key].to(device) for key in MODEL_KEYS if key in batch}
        sequence = sample.sequence
        length = min(len(sequence.token_ids_T), token_limit or len(sequence.token_ids_T))
        num_rows = max(0, min(sequence.rows.num_rows, length - sequence.label_start + 1, MAX_ROWS))
        first = sequence.label_start - 1
        rows, vocab_size = sequence.rows.slice(0, num_rows), self._trainer.loss_settings.vocab_size
        labels_N = np.full(num_rows, -1, np.int64)
        known = sequence.token_ids_T[sequence.label_start : sequence.label_start + num_rows]
        labels_N[: len(known)] = known

        def looked_at(outputs_BT: Tensor, to_logits: Callable[[Tensor], Tensor]) -> StudentRows:
            pieces = [
                student_rows(
                    to_logits(outputs_BT[0, first + start : first + min(start + PIECE_TOKENS, num_rows)]),
                    rows.slice(start, min(start + PIECE_TOKENS, num_rows)),
                    labels_N[start : start + PIECE_TOKENS],
                    sample.labels.temperatures,
                    vocab_size,
                )
                for start in range(0, max(num_rows, 1), PIECE_TOKENS)
            ]
            return _joined(pieces)

        head = self._trainer.head
        if head is None:
            return looked_at(model(**inputs, use_cache=False).logits, Tensor.float)
        with head_replaced(head, lambda hidden_BTH: looked_at(hidden_BTH, head.logits)) as taken:
            model(**inputs, use_cache=False)
        return taken[0]


def student_rows(
    logits_NV: Tensor,
    teacher: LabelRows,
    labels_N: np.ndarray,
    temperatures: tuple[float, ...],
    vocab_size: int | None,
) -> StudentRows:
    """A student's rows at the ids of its teacher's; a label of -1 is not known.

    `logits_NV` are float32; ids from `vocab_size` on take no part.
    """
    logits_NV = logits_NV[:, :vocab_size]
    width = logits_NV.shape[1]
    is_entry_NK = np.arange(teacher.token_ids_NK.shape[1]) < teacher.count_N[:, None]
    is_had_NK = torch.from_numpy(is_entry_NK & (teacher.token_ids_NK < width)).to(logits_NV.device)
    ids_NK = torch.from_numpy(teacher.token_ids_NK.astype(np.int64)).to(logits_NV.device)
    ids_NK = torch.where(is_had_NK, ids_NK, 0)
    taken_NK = torch.where(is_had_NK, logits_NV.gather(1, ids_NK), -torch.inf)
    is_stored_NV = torch.zeros_like(logits_NV, dtype=torch.int32).scatter_add_(1, ids_NK, is_had_NK.int()) > 0
    outside_NV = logits_NV.masked_fill(is_stored_NV, -torch.inf)
    logsumexp_NM = torch.stack([(logits_NV / t).logsumexp(dim=1) for t in temperatures], dim=1)
    outside_NM = torch.stack([(outside_NV / t).logsumexp(dim=1) for t in temperatures], dim=1)
    own_N, own_ids_N = logits_NV.max(dim=1)
    labels = torch.from_numpy(labels_N).to(logits_NV.device)
    is_known_N = (labels >= 0) & (labels < width)
    label_N1 = logits_NV.gather(1, torch.where(is_known_N, labels, 0)[:, None])
    label_logprob_N = torch.where(is_known_N, label_N1[:, 0] - logsumexp_NM[:, 0], torch.nan)
    rank_N = torch.where(is_known_N, (logits_NV >= label_N1).sum(dim=1), 0)
    rows = LabelRows(
        logits_NK=_array(taken_NK, np.float32),
        token_ids_NK=teacher.token_ids_NK,
        count_N=teacher.count_N,
        logsumexp_NM=_array(logsumexp_NM, np.float32),
        log_tail_mass_NM=_array((outside_NM - logsumexp_NM).clamp(max=0), np.float32),
        label_logprob_N=_array(label_logprob_N, np.float32),
        label_rank_N=_array(rank_N, np.int32),
    )
    return StudentRows(rows, _array(own_ids_N, np.int32), _array(own_N, np.float32))


def _array(values: Tensor, dtype: type) -> np.ndarray:
    return values.cpu().numpy().astype(dtype)


def _joined(pieces: list[StudentRows]) -> StudentRows:
    """Consecutive rows as one."""
    if len(pieces) == 1:
        return pieces[0]
    names = ("logits_NK", "token_ids_NK", "count_N", "logsumexp_NM", "log_tail_mass_NM",
             "label_logprob_N", "label_rank_N")  # fmt: skip
    rows = LabelRows(*(np.concatenate([getattr(one.rows, name) for one in pieces]) for name in names))
    return StudentRows(
        rows,
        np.concatenate([one.own_token_ids_N for one in pieces]),
        np.concatenate([one.own_logits_N for one in pieces]),
    )
