"""Distillation from a logit store with transformers' Trainer.

`OfflineDistillationTrainer` reads a StreamingLogitDataset in its own order (accelerate never divides it
again), saves the dataset's place in every checkpoint and goes on from it on any number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
)
from transformers.trainer_utils import EvalPrediction

from logitstore.models.hub import check_model_name
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import LABEL_WEIGHTS
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.checkpoints import DataFollower, LogToTheEnd, open_to_readers
from trainer.hf.checks.adapters import check_no_own_loss
from trainer.hf.checks.alignment import Alignment
from trainer.hf.checks.disk import saves_in_parts
from trainer.hf.checks.given import check_given
from trainer.hf.checks.guards import (
    check_one_tokenizer,
    check_stores,
    check_student,
    checked_store_losses,
)
from trainer.hf.checks.labels import check_labels
from trainer.hf.checks.language_model import check_causal, check_has_head
from trainer.hf.checks.lengths import length_limit, student_context
from trainer.hf.checks.optimizer import check_optimizer, check_schedule
from trainer.hf.checks.packing_check import settle_packing, uses_flash_attention
from trainer.hf.checks.processes import check_dataset, check_launched, check_processes
from trainer.hf.epochs import next_place
from trainer.hf.evaluation.evaluating import EvaluationSets, check_types, evaluation_sets
from trainer.hf.heads import Head, batch_loss, find_head, total_weight
from trainer.hf.resuming import ResumingTrainer
from trainer.hf.student import (
    check_not_tensor_parallel,
    keep_4_bits_differentiable,
    router_loss_coef,
    student_ids,
    with_adapters,
)
from trainer.hf.token_means import TokenMeans
from trainer.loss.loss_settings import LossSettings


class OfflineDistillationTrainer(ResumingTrainer):
    """Trainer for a causal language model on stored teacher labels.

    Raises GuardError and the like (`trainer.hf.checks.guards`) if store, student and loss do not fit
    together; `processing_class` is the student's tokenizer, which is not checked without it.
    """

    def __init__(
        self,
        model: nn.Module | str | None,
        args: OfflineDistillationConfig,
        train_dataset: StreamingLogitDataset,
        data_collator: DistillationCollator,
        *,
        eval_dataset: EvaluationSets | None = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        peft_config: Any = None,
        store_losses: Sequence[LossSettings] = (),
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """As for transformers' Trainer.

        Args:
            model: the student; a name or folder is loaded in float32. None if `model_init` makes it.
            eval_dataset: one, or several by name, whose figures are then called eval_<name>_kl and so on.
            peft_config: adapters of peft to train instead of the student's weights.
            store_losses: the loss of each store of the training dataset, where their alpha or temperature
                differ; none takes that of `args` for all.
            compute_metrics: further figures from full logits, on which evaluation then spends a second pass;
                `preprocess_logits_for_metrics` makes them smaller before they are gathered.
        """
        check_given(
            model=model,
            args=args,
            data_collator=data_collator,
            processing_class=processing_class,
            store_losses=store_losses,
        )
        check_types(train_dataset, eval_dataset)
        check_launched(args)
        if isinstance(model, str):
            check_model_name(model, revision=None, setting="model")
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        check_not_tensor_parallel(model)
        if peft_config is not None:
            model = with_adapters(model, peft_config, seed=args.seed)
        super().__init__(
            model=model,  # type: ignore[arg-type]  # any causal language model, adapted by peft or not
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            data_collator=data_collator,
            processing_class=processing_class,
            model_init=model_init,  # type: ignore[arg-type]
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # Have Trainer count the labels of the whole optimizer step, over processes, for compute_loss.
        self.model_accepts_loss_kwargs = True
        self.loss_settings = args.loss_settings()
        self.logit_dataset = train_dataset
        self.store_losses = checked_store_losses(store_losses, self.loss_settings, train_dataset)
        self._given_settings = data_collator.settings
        self._beginning = next_place(train_dataset)
        self._means = TokenMeans()
        self._follower = DataFollower(train_dataset)
        self.callback_handler.callbacks.insert(0, self._follower)
        self.add_callback(LogToTheEnd())
        self._take_student(self.model)
        self._makes_optimizer = optimizers == (None, None)
        self._given_optimizer = optimizers[0]
        self.alignments = self._check(processing_class)

    def _check(self, processing_class: Any) -> list[Alignment]:
        """Refuse what would fail later, or be another training than was asked for; see `check_student`."""
        if self._makes_optimizer:
            check_optimizer(self.args, self.model)
            check_schedule(self.args)
        check_processes(self.args, self.accelerator.distributed_type)
        check_dataset(
            self.logit_dataset,
            self._given_settings,
            num_processes=self.args.world_size,
            train_batch_size=self._train_batch_size,
        )
        self._check_course()
        width = self.model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
        vocabulary = None if processing_class is None else processing_class.get_vocab()
        check_one_tokenizer((self.logit_dataset, *evaluation_sets(self.eval_dataset).values()))
        alignments = check_student(
            self.logit_dataset,
            self.loss_settings,
            self._given_settings,
            student_width=width,
            vocabulary=vocabulary,
            store_losses=self.store_losses,
        )
        for dataset in evaluation_sets(self.eval_dataset).values():
            check_stores(dataset, self.loss_settings, student_width=width, vocabulary=vocabulary)
        check_labels(
            self.args,
            self.logit_dataset,
            evaluation_sets(self.eval_dataset),
            given=self._given_settings,
            used=self.collator.settings,
            context=student_context(self.model),
        )
        return alignments

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """`model_init` makes a student at construction, and a new one for each training."""
        model = super().call_model_init(trial)
        check_not_tensor_parallel(model)
        if self._collator is not None:
            self._take_student(model)
        return model

    def _take_student(self, model: Any) -> None:
        """What follows from the student: its head, its context, and how its packed documents stay apart."""
        check_has_head(model)
        check_no_own_loss(model)
        keep_4_bits_differentiable(model)
        settings = replace(
            self._given_settings,
            max_length=length_limit(self._given_settings, student_context(model)),
            count_tokens=True,
            store_temperatures=tuple(own.temperature if own.alpha > 0 else None for own in self.store_losses),
            student_vocab_size=student_ids(model),
        )
        # FlashAttention takes no float32; in it, what others compute is judged by the sharpest tolerances.
        with self.accelerator.autocast() if uses_flash_attention(model) else contextlib.nullcontext():
            self.router_loss_coef = router_loss_coef(model)
            self.head: Head | None = find_head(model) if self.args.fused else None
            check_causal(model)
            self._collator = DistillationCollator(settle_packing(model, settings))

    def get_train_dataloader(self) -> LogitDataLoader:  # type: ignore[override]  # a DataLoader
        return self._loader(self.logit_dataset, self.collator)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """The labels that count, or where segments have weights the sum of theirs; over processes as well."""
        if not batch_samples or LABEL_WEIGHTS not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weight = torch.stack([total_weight(batch) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            gathered: Any = self.accelerator.gather(weight)
            weight = gathered.sum()
        return weight / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())  # the same batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs: list[Any] = []

        def run(**given: Any) -> Any:
            outputs.append(model(**given))
            return outputs[-1]

        wants_logits = return_outputs and not model.training
        output = batch_loss(
            run,
            inputs,
            self.loss_settings,
            head=None if wants_logits else self.head,
            chunk_rows=self.args.chunk_rows,
            num_items_in_batch=num_items_in_batch,
            store_settings=self.store_losses if model.training else (),
        )
        loss = output.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Labels were counted over all processes, whose gradients will be averaged, not added.
            loss = loss * self.accelerator.num_processes
        if model.training:
            self._means.add(output, num_items_in_batch, inputs.get("token_counts"))
            if self.router_loss_coef:
                # A mean of each micro-batch and process; the sum over micro-batches is to be their mean.
                loss = loss + self.router_loss_coef / self.current_gradient_accumulation_steps * (
                    outputs[0].aux_loss.to(loss.device)
                )
        if not return_outputs:
            return loss
        logits = {"logits": outputs[0].logits} if wants_logits else {}
        return loss, {"loss": loss.detach(), **logits}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._means.take()}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does; where FSDP keeps checkpoints in parts, also save the whole model."""
        super().save_model(output_dir, _internal_call)
        if self.is_fsdp_enabled and not _internal_call and saves_in_parts(self.accelerator):
            state_dict = self.accelerator.get_state_dict(self.model)
            if self.args.should_save:
                self._save(output_dir, state_dict)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        open_to_readers(Path(output_dir or self.args.output_dir or "."))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn as transformers does, but of no weight tied to another, which no checkpoint holds twice."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _loader(self, dataset: StreamingLogitDataset, collator: Any) -> LogitDataLoader:
        return LogitDataLoader(
            dataset,
            collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            multiprocessing_context=self.args.dataloader_multiprocessing_context
            if self.args.dataloader_num_workers
            else None,
        )
