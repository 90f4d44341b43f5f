"""transformers' arguments of a run, from its configuration."""

from __future__ import annotations

from pathlib import Path

import torch

from logitstore.common.config_file import flatten
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.run.config import TrainConfig, resolved
from trainer.run.file_names import CHECKPOINTS_NAME


def arguments_of(
    config: TrainConfig, folder: Path, vocab_size: int | None, quiet: bool
) -> OfflineDistillationConfig:
    training, loss = config.training, config.loss
    arguments = OfflineDistillationConfig(
        output_dir=str(folder / CHECKPOINTS_NAME),
        max_steps=training.max_steps or -1,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=config.evaluation.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        optim=training.optimizer,
        optim_args=training.optimizer_args,
        lr_scheduler_type=training.schedule,
        lr_scheduler_kwargs=training.schedule_args or None,
        warmup_steps=training.warmup_steps if training.warmup_ratio is None else training.warmup_ratio,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        torch_compile=training.compile,
        fsdp=True if training.fsdp is not None else None,  # type: ignore[arg-type]  # as transformers has it
        fsdp_config=None if training.fsdp is None else dict(training.fsdp),
        deepspeed=training.deepspeed,
        use_cpu=not torch.accelerator.is_available(),  # without it, transformers refuses bf16 there
        gradient_checkpointing=training.gradient_checkpointing,
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        save_strategy="no" if training.save_steps is None else "steps",
        save_steps=training.save_steps or 500,
        save_total_limit=training.save_total_limit,
        eval_strategy="no" if config.evaluation.steps is None else "steps",
        eval_steps=config.evaluation.steps,
        load_best_model_at_end=config.evaluation.best is not None,
        metric_for_best_model=config.evaluation.best,
        report_to=list(training.report_to),  # TensorBoard gets a callback: no argument says its folder
        run_name=training.run_name,
        project=training.project or "huggingface",
        disable_tqdm=quiet,
        log_level="error" if quiet else "passive",
        dataloader_num_workers=config.data.num_workers,
        include_num_input_tokens_seen="all",
        temperature=loss.temperature,
        alpha=loss.alpha,
        beta=loss.beta,
        divergence=loss.divergence,
        tail=loss.tail,
        vocab_size=vocab_size,
        foreign_ids="tail" if loss.vocabulary == "padded" else "error",
        scale_by_temperature_squared=loss.scale_by_temperature_squared,
        fused=loss.fused,
        chunk_rows=loss.chunk_rows,
        max_eval_sequences=config.evaluation.max_sequences,
    )
    arguments.run_settings = flatten(resolved(config))
    return arguments
