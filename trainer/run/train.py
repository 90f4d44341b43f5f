"""A training run from its configuration: check, evaluate, train, evaluate, save.

The output folder gets the model and tokenizer, `README.md` (model card), `train.json` (the resolved
configuration), `metrics.json` (see `RunMetrics`), `checkpoints/` and `tensorboard/`.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import EarlyStoppingCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from logitstore.common.whole_file import write_whole
from trainer.batch.collate import DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.checks.lengths import student_context
from trainer.hf.evaluation.calibration import CalibrationSums
from trainer.hf.evaluation.teacher_figures import calibration_record, teacher_figures
from trainer.hf.quantize import fake_quantize, save_quantized
from trainer.hf.trainer import OfflineDistillationTrainer
from trainer.run.advice import advice_on, notes_on_texts
from trainer.run.config import TrainConfig
from trainer.run.only_run import only_run
from trainer.run.output import (
    CHECKPOINTS_NAME,
    RunMetrics,
    begin_run,
    check_place,
    finished_run,
    open_tensorboard,
    save_run,
    unfinished_run,
    write_evaluations,
)
from trainer.run.packages import check_packages
from trainer.run.reading.datasets import collate_settings, datasets, real_size, store_losses
from trainer.run.watch.snapshots import SnapshotTaker
from trainer.run.student import load_student, load_tokenizer, quantization_of
from trainer.run.watch.progress import show_progress
from trainer.run.watch.samples import SampledAnswers, held_out_prompts

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PreTrainedTokenizerBase


def train(config: TrainConfig, *, restart: bool = False, quiet: bool = False) -> RunMetrics:
    """Run it, or go on from the last checkpoint in the output folder, or return what a finished run left.

    Raises ConfigError and GuardError before anything is trained, and StoreError for a store that cannot
    be read; RunBusyError while another process trains into the folder.
    """
    folder = Path(config.output.folder)
    check_place(folder)
    check_packages(config)
    tokenizer = load_tokenizer(config.student, config.data.stores)
    train_set, held_out = datasets(config, tokenizer)
    is_first = train_set.topology.rank == 0
    with only_run(folder) if is_first else contextlib.nullcontext():
        finished = None if restart else finished_run(folder, config, train_set, held_out)
        if finished is not None:
            if not quiet and is_first:
                print(
                    f"finished before: nothing is trained; {folder} has this run's student", file=sys.stderr
                )
            return finished
        checkpoint = None if restart else unfinished_run(folder, config, train_set, held_out)
        return _train(config, tokenizer, train_set, held_out, checkpoint, restart=restart, quiet=quiet)


def _train(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_set: StreamingLogitDataset,
    held_out: StreamingLogitDataset,
    checkpoint: str | None,
    *,
    restart: bool,
    quiet: bool,
) -> RunMetrics:
    folder = Path(config.output.folder)
    width = train_set.sources[0].manifest.labels.vocab_size
    model = load_student(config.student, tokenizer, vocab_size=width, seed=config.training.seed)
    quantization = quantization_of(config.student)
    if quantization is not None:
        fake_quantize(model, quantization)
    arguments = _arguments(config, folder, real_size(config, train_set, model), quiet)
    board = open_tensorboard(config, folder, arguments)
    trainer = OfflineDistillationTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        data_collator=DistillationCollator(collate_settings(config, tokenizer)),
        eval_dataset=held_out,
        processing_class=tokenizer,
        store_losses=store_losses(config, arguments.loss_settings()),
        callbacks=[
            *([] if board is None else [TensorBoardCallback(board)]),
            *([] if (patience := config.evaluation.patience) is None else [EarlyStoppingCallback(patience)]),
        ],
    )
    if config.evaluation.snapshots:
        trainer.add_callback(
            SnapshotTaker(
                trainer,
                held_out,
                folder,
                num_sequences=config.evaluation.snapshots,
                steps=config.evaluation.snapshot_steps,
            )
        )
    if trainer.is_world_process_zero():
        begin_run(folder, config, restart=restart)
    before_path = folder / "before.json"
    before = _evaluate_before(config, trainer, before_path, resuming=checkpoint is not None)
    if trainer.is_world_process_zero() and not quiet:
        for line in (
            *(f"advice: {text}" for text in advice_on(train_set.sources)),
            *(f"note: {text}" for text in notes_on_texts(held_out.sources)),
        ):
            print(line, file=sys.stderr)
    progress = show_progress(trainer, quiet=quiet)
    _answer_prompts(config, trainer, board, None if progress is None else progress.tell)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if progress is not None:
            progress.close()
    seconds = time.monotonic() - clock
    calibration = CalibrationSums()
    metrics = RunMetrics(
        stores=_describe(train_set, held_out),
        evaluation_stores=_describe_evaluation(config, held_out),
        before=before,
        after=trainer.evaluate_student(calibration=calibration).to_dict(),
        history=[entry for entry in trainer.state.log_history if "loss" in entry],
        num_steps=trainer.state.global_step,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_tokens=int(trainer.state.num_input_tokens_seen),
        train_seconds=round(seconds, 3),
        alignment_nll={f"{offset:+d}": nll for offset, nll in trainer.alignments[0].nll_by_offset.items()},
        started=started.isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    limit = collate_settings(config, tokenizer).token_limit
    teacher = teacher_figures(held_out, limit, config.evaluation.max_sequences)
    metrics = replace(
        metrics,
        teacher=None if teacher is None else teacher.to_dict(),
        calibration=calibration_record(calibration.calibration(), teacher),
    )
    _save_student(config, trainer, folder)
    if trainer.is_world_process_zero():
        save_run(folder, config, train_set, metrics)
    if board is not None:
        write_evaluations(board, metrics)
    return metrics


def _answer_prompts(
    config: TrainConfig,
    trainer: OfflineDistillationTrainer,
    board: SummaryWriter | None,
    tell: Callable[[str], None] | None,
) -> None:
    evaluation = config.evaluation
    if not evaluation.samples:
        return
    held_out: Any = trainer.eval_dataset
    samples = SampledAnswers(
        Path(config.output.folder),
        trainer.processing_class,  # type: ignore[arg-type]  # the tokenizer that it was given
        held_out_prompts(
            held_out, evaluation.samples, student_context(trainer.model), evaluation.sample_tokens
        ),
        evaluation.sample_tokens,
        board=board,
        tell=tell,
    )
    trainer.add_callback(samples)


def _save_student(config: TrainConfig, trainer: OfflineDistillationTrainer, folder: Path) -> None:
    if config.student.lora is not None and config.student.lora.merge:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        trainer.model_wrapped = trainer.model
    quantization = quantization_of(config.student)
    if quantization is not None:
        if trainer.is_world_process_zero():
            save_quantized(trainer.accelerator.unwrap_model(trainer.model), quantization, folder)
            trainer.processing_class.save_pretrained(str(folder))  # type: ignore[union-attr]  # given above
        return
    trainer.save_model(str(folder))  # on every process, as sharded weights are gathered


def _arguments(
    config: TrainConfig, folder: Path, vocab_size: int | None, quiet: bool
) -> OfflineDistillationConfig:
    training, loss = config.training, config.loss
    return OfflineDistillationConfig(
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


def _evaluate_before(
    config: TrainConfig, trainer: OfflineDistillationTrainer, path: Path, *, resuming: bool
) -> dict[str, float | int] | None:
    """Of the student as it begins; kept in a file, as a resumed run no longer has that student."""
    if not config.evaluation.before:
        return None
    if resuming and path.exists():
        return json.loads(path.read_text())
    before = trainer.evaluate_student().to_dict()
    if trainer.is_world_process_zero():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(before))
    return before


def _describe_evaluation(config: TrainConfig, held_out: StreamingLogitDataset) -> list[dict[str, Any]]:
    if config.evaluation.stores is None:
        return []
    return [
        {
            "uri": source.uri,
            "digest": source.digest,
            "teacher": source.manifest.teacher.model,
            "num_sequences": sum(source.lengths),
        }
        for source in held_out.sources
    ]


def _describe(train_set: StreamingLogitDataset, held_out: StreamingLogitDataset) -> list[dict[str, Any]]:
    num_held_out = {source.uri: sum(source.lengths) for source in held_out.sources}
    return [
        {
            "uri": source.uri,
            "digest": source.digest,
            "teacher": source.manifest.teacher.model,
            "num_sequences": sum(source.lengths),
            "num_held_out": num_held_out.get(source.uri, 0),
        }
        for source in train_set.sources
    ]
