"""Distillation from a logit store with transformers' Trainer.

`OfflineDistillationTrainer` reads a StreamingLogitDataset in its own order (accelerate never divides it
again), saves the dataset's place in every checkpoint and goes on from it on any number of processes.
`make_compute_loss_func` is for the stock Trainer, on one process.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trainer.batch.collate import TEACHER_KEYS, CollateSettings, DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.topology import ReshardingError
from trainer.hf.evaluate import LOWER_IS_BETTER, Evaluation, evaluate, evaluation_batches
from trainer.hf.guards import check_student
from trainer.hf.heads import Head, batch_loss, find_head
from trainer.hf.lengths import check_lengths, length_limit, student_context
from trainer.hf.packing_check import check_packed_attention, choose_packed_attention
from trainer.loss.loss_inputs import LossOutput, TeacherTargets
from trainer.loss.loss_settings import Divergence, ForeignIds, LossSettings, Tail
from trainer.loss.losses import topk_distillation_loss

DATASET_STATE_NAME = "logit_dataset_state.json"


@dataclass
class OfflineDistillationConfig(TrainingArguments):
    """TrainingArguments and the loss; `LossSettings` documents the settings of the same names."""

    temperature: float = 1.0
    alpha: float = 0.5
    beta: float = 0.0
    divergence: Divergence = "generalized_jsd"
    tail: Tail = "bucket"
    vocab_size: int | None = None
    foreign_ids: ForeignIds = "error"
    scale_by_temperature_squared: bool = True
    fused: bool = True
    """Never hold [batch, tokens, vocabulary] logits."""
    chunk_rows: int | None = None
    """Rows per chunk of the fused loss; None takes what fits its buffer."""
    max_eval_sequences: int | None = None
    """Held-out sequences evaluated, always the same; None takes all."""

    def __post_init__(self) -> None:
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers takes every metric whose name does not end in "loss" for one to be raised.
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        super().__post_init__()
        self.remove_unused_columns = False  # the batch's keys are the loss's, not the model's
        self.ignore_data_skip = True  # the dataset goes on by itself; skipping would read what it skips
        if self.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers keeps workers that do not learn where an epoch begins; "
                "leave it off"
            )
        self.loss_settings()

    def loss_settings(self) -> LossSettings:
        """The loss. Raises ValueError for an impossible combination."""
        return LossSettings(**{item.name: getattr(self, item.name) for item in fields(LossSettings)[:-1]})


class OfflineDistillationTrainer(Trainer):
    """Trainer for a causal language model on stored teacher labels.

    Raises GuardError and the like (`trainer.hf.guards`) if store, student and loss do not fit together;
    `processing_class` is the student's tokenizer, which is not checked without it.
    """

    args: OfflineDistillationConfig

    def __init__(
        self,
        model: nn.Module,
        args: OfflineDistillationConfig,
        train_dataset: StreamingLogitDataset,
        data_collator: DistillationCollator,
        *,
        eval_dataset: StreamingLogitDataset | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model=model,  # type: ignore[arg-type]  # any causal language model, adapted by peft or not
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            data_collator=data_collator,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        # Have Trainer count the labels of the whole optimizer step, over processes, for compute_loss.
        self.model_accepts_loss_kwargs = True
        self.loss_settings = args.loss_settings()
        self.logit_dataset = train_dataset
        self.collator = DistillationCollator(self._within_context(data_collator.settings))
        with self.autocast_smart_context_manager():  # FlashAttention takes no float32
            self.head: Head | None = find_head(self.model) if args.fused else None
            self._settle_packing()
        self._means = _TokenMeans()
        self.add_callback(_TrueEpoch(train_dataset))
        self._check_dataset()
        self._check_lengths(data_collator.settings)
        self.alignments = check_student(
            train_dataset,
            self.loss_settings,
            data_collator.settings,
            student_width=self.model.get_output_embeddings().weight.shape[0],  # type: ignore[union-attr]
            vocabulary=None if processing_class is None else processing_class.get_vocab(),
        )

    def get_train_dataloader(self) -> LogitDataLoader:  # type: ignore[override]  # a DataLoader
        return self._loader(self.logit_dataset, self.collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        output = batch_loss(
            model,
            inputs,
            self.loss_settings,
            head=self.head,
            chunk_rows=self.args.chunk_rows,
            num_items_in_batch=num_items_in_batch,
        )
        if model.training:
            self._means.add(output, num_items_in_batch, inputs.get("token_counts"))
        loss = output.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Labels were counted over all processes, whose gradients will be averaged, not added.
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def evaluate(  # type: ignore[override]  # datasets of other kinds have no labels
        self,
        eval_dataset: StreamingLogitDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on held-out records, the same ones each time; see `trainer.hf.evaluate.Evaluation`."""
        evaluation = self.evaluate_student(eval_dataset)
        metrics = {f"{metric_key_prefix}_{key}": float(value) for key, value in evaluation.to_dict().items()}
        metrics[f"{metric_key_prefix}_loss"] = evaluation.kl
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_student(self, eval_dataset: StreamingLogitDataset | None = None) -> Evaluation:
        dataset = eval_dataset or self.eval_dataset
        if not isinstance(dataset, StreamingLogitDataset):
            raise ValueError("evaluation needs a StreamingLogitDataset: give eval_dataset")
        return evaluate(
            self.model,
            evaluation_batches(dataset, self.collator, self.args.max_eval_sequences),
            head=self.head,
            vocab_size=self.loss_settings.vocab_size,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._means.take()}
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir or ".")
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle, which nothing reads
        mode = _mode_of_new_files(folder)
        for path in folder.glob("*.safetensors"):  # written for their owner alone, whatever the umask
            path.chmod(mode)

    # ---- Checkpoints: the dataset's place is saved with the weights, and taken up with them ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(
                self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            folder.mkdir(parents=True, exist_ok=True)
            # First, so that no checkpoint is ever complete but for this.
            (folder / DATASET_STATE_NAME).write_text(json.dumps(self.logit_dataset.state_dict()))
        super()._save_checkpoint(model, trial)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """(epoch to begin with, 0): by the dataset's place, as the steps per epoch may be others now."""
        started = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return started
        path = Path(resume_from_checkpoint, DATASET_STATE_NAME)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint does not say where its data stood, and starting from "
                "zero would train on data twice. Resume from a checkpoint of OfflineDistillationTrainer"
            )
        self.logit_dataset.load_state_dict(json.loads(path.read_text()))
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0  # finished; Trainer would take one step more
        return self.logit_dataset.epoch, 0

    def _run_epoch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **rest: Any
    ) -> None:
        """As ever, but with the steps that are left of the epoch, which a resumed run may have begun.

        Otherwise the last, smaller accumulation of a resumed epoch would never be stepped.
        """
        self.logit_dataset.set_epoch(epoch)
        steps_left = self.logit_dataset.steps_left
        accumulation = self.args.gradient_accumulation_steps
        super()._run_epoch(
            epoch=epoch,
            steps_in_epoch=steps_left,
            num_update_steps_per_epoch=-(-steps_left // accumulation),
            **rest,
        )

    def _loader(self, dataset: StreamingLogitDataset, collator: Any) -> LogitDataLoader:
        return LogitDataLoader(
            dataset,
            collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def _within_context(self, settings: CollateSettings) -> CollateSettings:
        """The settings of the batches, which are counted, and cut at the student's context."""
        limit = length_limit(settings, student_context(self.model))
        return replace(settings, max_length=limit, count_tokens=True)

    def _check_lengths(self, settings: CollateSettings) -> None:
        """By the settings as they were given, so that what is said names what somebody set."""
        context = student_context(self.model)
        check_lengths(self.logit_dataset, settings, context, purpose="training")
        if isinstance(self.eval_dataset, StreamingLogitDataset):
            check_lengths(self.eval_dataset, settings, context, purpose="evaluation")

    def _settle_packing(self) -> None:
        """Choose how packed documents are kept apart, or prove what was chosen, on this student."""
        settings = self.collator.settings
        if settings.pack_length is None:
            return
        if settings.packed_attention is None:
            way = choose_packed_attention(self.model, pack_length=settings.pack_length)
            self.collator = DistillationCollator(replace(settings, packed_attention=way))
        else:
            check_packed_attention(self.model, settings.packed_attention, pack_length=settings.pack_length)

    def _check_dataset(self) -> None:
        dataset, num_processes = self.logit_dataset, self.args.world_size
        if self.args.n_gpu > 1:
            raise ReshardingError(
                f"this process has {self.args.n_gpu} GPUs and would divide each batch among them; start one "
                f"for each, `torchrun --nproc-per-node {self.args.n_gpu} ...`, or set CUDA_VISIBLE_DEVICES=0"
            )
        if dataset.num_readers != num_processes:
            raise ReshardingError(
                f"the dataset is divided among {dataset.num_readers} processes, but {num_processes} train; "
                "construct it after TrainingArguments (which starts torch.distributed), or give rank and "
                "world_size"
            )
        if dataset.topology.world_size > 1 and not dataset.even:
            raise ValueError(
                f"an epoch may give some of {num_processes} processes one step more than others, which would "
                "then wait for ever; construct the dataset with even=True"
            )
        if dataset.batch_size != self._train_batch_size:
            raise ValueError(
                f"the dataset has batch_size={dataset.batch_size}, training "
                f"per_device_train_batch_size={self._train_batch_size}; give both the same"
            )


def make_compute_loss_func(model: nn.Module, settings: LossSettings) -> Callable[..., Tensor]:
    """`compute_loss_func` for the stock Trainer: `Trainer(model, ..., compute_loss_func=...)`.

    The stock Trainer gives the whole batch to the model, and only its outputs to the loss. So a hook on
    the model takes the `teacher_*` keys out of each call and keeps them for the loss that follows.
    Needs `remove_unused_columns=False`.
    """
    taken: list[TeacherTargets | None] = [None]

    def take(_: nn.Module, args: tuple[Any, ...], batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        taken[0] = TeacherTargets.from_batch(batch) if "teacher_token_ids" in batch else None
        # With a cache, transformers would not look where positions restart, and packed documents would mix.
        return args, {
            **{key: value for key, value in batch.items() if key not in TEACHER_KEYS},
            "use_cache": False,
        }

    def compute_loss(
        outputs: Mapping[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        output = topk_distillation_loss(
            outputs["logits"], labels, taken[0], settings, num_items_in_batch=num_items_in_batch
        )
        return output.loss

    model.register_forward_pre_hook(take, with_kwargs=True)
    return compute_loss


def _mode_of_new_files(folder: Path) -> int:
    """As the umask has it. (To ask for the umask is to change it, for all threads.)"""
    probe = folder / ".mode-of-new-files"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


class _TrueEpoch(TrainerCallback):
    """Keeps `state.epoch` at the dataset's place, which is right on any number of processes."""

    def __init__(self, dataset: StreamingLogitDataset) -> None:
        self.dataset = dataset

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        state.epoch = self.dataset.epoch + self.dataset.consumed / self.dataset.epoch_length


class _TokenMeans:
    """Means per label since the last log, over all processes."""

    NAMES = ("distillation", "cross_entropy", "teacher_mass", "student_mass", "top1_agreement")

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, output: LossOutput, num_items: Tensor | int | None, token_counts_3: Tensor | None) -> None:
        metrics = output.metrics
        rows = metrics.num_rows
        items = rows if num_items is None else num_items
        if token_counts_3 is None:
            token_counts_3 = torch.zeros(3, dtype=torch.int64)
        sums = torch.stack(
            [
                torch.as_tensor(rows, device=output.loss.device),
                output.distillation * items,
                output.cross_entropy * items,
                *(
                    value * rows
                    for value in (metrics.teacher_mass, metrics.student_mass, metrics.top1_agreement)
                ),
            ]
        )
        if sums.device.type != "mps":  # which has no float64
            sums = sums.double()
        sums = torch.cat([sums, token_counts_3.to(sums)])
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self) -> dict[str, float]:
        """Every process must call it; all get the same."""
        if self.sums is None:
            return {}
        sums, self.sums = self.sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        num_rows, *totals, num_tokens, num_places, num_cut_rows = sums.tolist()
        means = {
            name: round(total / max(num_rows, 1), 6) for name, total in zip(self.NAMES, totals, strict=True)
        }
        fill = round(num_tokens / max(num_places, 1), 4)
        return {**means, "num_rows": int(num_rows), "fill": fill, "num_cut_rows": int(num_cut_rows)}


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint below a folder, or None."""
    complete = [
        path
        for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (path / DATASET_STATE_NAME).exists() and (path / "trainer_state.json").exists()
    ]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default="")) or None
