"""A training run from its configuration: check, evaluate, train, evaluate, save.

The output folder gets the model and tokenizer, `README.md` (model card), `train.json` (the resolved
configuration), `metrics.json` (see `RunMetrics`), `checkpoints/` and `tensorboard/`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from logitstore.common.whole_file import write_whole
from trainer.batch.collate import DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.checks.disk import bytes_saved, weight_bytes
from trainer.hf.checks.lengths import student_context
from trainer.hf.quantize import bytes_left_out, fake_quantize, save_quantized
from trainer.hf.student import merge_adapters
from trainer.hf.trainer import OfflineDistillationTrainer
from trainer.run.advice import advice_on, notes_on_held_out, notes_on_run, notes_on_temperatures
from trainer.run.arguments import arguments_of
from trainer.run.config import TrainConfig
from trainer.run.only_run import only_run
from trainer.run.output import (
    RunMetrics,
    begin_run,
    check_place,
    finished_run,
    open_tensorboard,
    save_run,
    unfinished_run,
)
from trainer.run.packages import check_packages
from trainer.run.reading.datasets import collate_settings, datasets, real_size, store_losses
from trainer.run.result.figures import RunTimes, run_metrics
from trainer.run.student import load_student, load_tokenizer, quantization_of
from trainer.run.watch.held_out import HeldOutFigures
from trainer.run.watch.progress import show_progress
from trainer.run.watch.samples import SampledAnswers, held_out_prompts
from trainer.run.watch.sigterm import asked_by_sigterm
from trainer.run.watch.snapshots import SnapshotTaker
from trainer.run.watch.stopping import SavingStop
from trainer.run.watch.trackers import prepare_trackers, tracker_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PreTrainedTokenizerBase


def train(config: TrainConfig, *, restart: bool = False, quiet: bool = False) -> RunMetrics:
    """Run it, or go on from the last checkpoint in the output folder, or return what a finished run left.

    Raises ConfigError and GuardError before anything is trained, and StoreError for a store that cannot
    be read; RunBusyError while another process writes into the folder; StoppedError where SIGTERM came while
    it trained, once a checkpoint is saved.
    """
    folder = Path(config.output.folder)
    check_place(folder)
    check_packages(config)
    prepare_trackers(config.training)
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
    with tracker_errors(config):  # they are imported here
        trainer, board = _trainer_of(config, tokenizer, train_set, held_out, quiet=quiet)
    student_bytes = _student_bytes(config, trainer)
    trainer.check_disk(student_bytes=student_bytes, checkpoint=checkpoint, is_restart=restart)
    if trainer.is_world_process_zero():
        begin_run(folder, config, restart=restart)
        if not quiet:
            _advise(config, trainer, train_set, held_out)
            if checkpoint is not None:
                print(f"going on from {checkpoint}", file=sys.stderr)
    before_path = folder / "before.json"
    before = _evaluate_before(config, trainer, before_path, resuming=checkpoint is not None)
    progress = show_progress(trainer, quiet=quiet)
    _answer_prompts(config, trainer, board, None if progress is None else progress.tell)
    figures = HeldOutFigures(trainer, before)
    trainer.callback_handler.callbacks.insert(0, figures)
    started, clock = datetime.now(UTC), time.monotonic()
    with asked_by_sigterm() as asked:
        trainer.callback_handler.callbacks.insert(0, SavingStop(asked))
        try:
            with tracker_errors(config):
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            if progress is not None:
                progress.close()
        times = RunTimes(started, round(figures.ended_sec - clock, 3))
        metrics = run_metrics(config, trainer, train_set, held_out, before, figures, times)
        _save_student(config, trainer, folder)
        if trainer.is_world_process_zero():
            save_run(folder, config, train_set, metrics)
    if board is not None:
        board.close()
    return metrics


def _trainer_of(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_set: StreamingLogitDataset,
    held_out: StreamingLogitDataset,
    *,
    quiet: bool,
) -> tuple[OfflineDistillationTrainer, SummaryWriter | None]:
    """The student in its Trainer, and where its figures are drawn."""
    folder = Path(config.output.folder)
    width = train_set.sources[0].manifest.labels.vocab_size
    model = load_student(config.student, tokenizer, vocab_size=width, seed=config.training.seed)
    quantization = quantization_of(config.student)
    if quantization is not None:
        fake_quantize(model, quantization)
    arguments = arguments_of(config, folder, real_size(config, train_set, model), quiet)
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
    return trainer, board


def _advise(
    config: TrainConfig,
    trainer: OfflineDistillationTrainer,
    train_set: StreamingLogitDataset,
    held_out: StreamingLogitDataset,
) -> None:
    model: Any = trainer.model
    # A quantised student learns from its own labels at full precision.
    num_parameters = None if quantization_of(config.student) is not None else model.num_parameters()
    notes = (
        *notes_on_run(config),
        *notes_on_temperatures(config, train_set.sources),
        *notes_on_held_out(held_out.sources),
    )
    for line in (
        *(f"advice: {text}" for text in advice_on(train_set.sources, num_parameters)),
        *(f"note: {text}" for text in notes),
    ):
        print(line, file=sys.stderr)


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


def _student_bytes(config: TrainConfig, trainer: OfflineDistillationTrainer) -> int:
    """What `_save_student` will write, about."""
    lora, quantization = config.student.lora, quantization_of(config.student)
    if quantization is not None:
        return weight_bytes(trainer.model) - bytes_left_out(trainer.model, quantization)
    if lora is None or not lora.merge:
        return bytes_saved(trainer.args, trainer.model).weights
    return weight_bytes(trainer.model)  # adapters, which are merged into the rest, are a small part of it


def _save_student(config: TrainConfig, trainer: OfflineDistillationTrainer, folder: Path) -> None:
    if config.student.lora is not None and config.student.lora.merge:
        merge_adapters(trainer)
    quantization = quantization_of(config.student)
    if quantization is not None:
        if trainer.is_world_process_zero():
            save_quantized(trainer.accelerator.unwrap_model(trainer.model), quantization, folder)
            trainer.processing_class.save_pretrained(str(folder))  # type: ignore[union-attr]  # given above
        return
    trainer.save_model(str(folder))  # on every process, as sharded weights are gathered


def _evaluate_before(
    config: TrainConfig, trainer: OfflineDistillationTrainer, path: Path, *, resuming: bool
) -> dict[str, float | int] | None:
    """Figures of the student as it begins; kept in a file, as a resumed run no longer has that student."""
    if not config.evaluation.before:
        return None
    if resuming and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    before = trainer.evaluate_student().to_dict()
    if trainer.is_world_process_zero():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(before))
    return before
