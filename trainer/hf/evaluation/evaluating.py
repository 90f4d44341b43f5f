"""Evaluation and prediction on stores, within transformers' Trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput, speed_metrics

from trainer.batch.collate import DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.evaluation.calibration import CalibrationSums
from trainer.hf.evaluation.evaluate import (
    Evaluation,
    EvaluationLoader,
    evaluate,
    evaluation_batches,
    tokenizer_size_of,
)
from trainer.hf.heads import Head
from trainer.loss.loss_settings import LossSettings

EvaluationSets = StreamingLogitDataset | Mapping[str, StreamingLogitDataset]
"""One set, or several by name."""
DEFAULT_EVAL_BATCH_SIZE = 8
"""transformers' own; whoever leaves it means the dataset's."""


class EvaluatingTrainer(Trainer):
    """The part of OfflineDistillationTrainer that compares the student with its teacher."""

    args: OfflineDistillationConfig
    collator: DistillationCollator | None
    head: Head | None
    logit_dataset: StreamingLogitDataset
    loss_settings: LossSettings

    def evaluate(  # type: ignore[override]  # datasets of other kinds have no labels
        self,
        eval_dataset: EvaluationSets | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on held-out records, the same each time; see `trainer.hf.evaluation.evaluate.Evaluation`.

        Of several sets each is evaluated, with its name in the names of the figures.
        """
        given: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, Mapping):
            metrics: dict[str, float] = {}
            for name, dataset in given.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        self._memory_tracker.start()
        dataset, started = self._evaluation_set(given), time.time()
        metrics = self._figures(dataset, metric_key_prefix)
        if self.compute_metrics is not None:
            metrics |= self._predict(dataset, "Evaluation", ignore_keys, metric_key_prefix).metrics or {}
        num_sequences = int(metrics[f"{metric_key_prefix}_num_sequences"])
        metrics |= speed_metrics(
            metric_key_prefix,
            started,
            num_samples=num_sequences,
            num_steps=-(-num_sequences // dataset.step_size),
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def evaluate_student(
        self,
        eval_dataset: StreamingLogitDataset | None = None,
        calibration: CalibrationSums | None = None,
    ) -> Evaluation:
        """Of the held-out records; `calibration` gets the same rows."""
        dataset = self._evaluation_set(self.eval_dataset if eval_dataset is None else eval_dataset)
        return evaluate(
            self.model,
            self._evaluation_batches(dataset),
            head=self.head,
            vocab_size=self.loss_settings.vocab_size,
            tokenizer_size=tokenizer_size_of(dataset),
            calibration=calibration,
        )

    def predict(  # type: ignore[override]  # as above
        self,
        test_dataset: StreamingLogitDataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Logits [N, T, V] and labels of the sequences, padded, and the figures of `evaluate`.

        Logits of all sequences are held at once: meant for few, or `preprocess_logits_for_metrics`.
        """
        dataset = self._evaluation_set(test_dataset)
        metrics = self._figures(dataset, metric_key_prefix)
        found = self._predict(dataset, "Prediction", ignore_keys, metric_key_prefix)
        metrics |= found.metrics or {}
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        return PredictionOutput(found.predictions, found.label_ids, metrics)

    def _figures(self, dataset: StreamingLogitDataset, prefix: str) -> dict[str, float]:
        evaluation = self.evaluate_student(dataset)
        metrics = {f"{prefix}_{key}": float(value) for key, value in evaluation.to_dict().items()}
        return {**metrics, f"{prefix}_loss": evaluation.kl}

    def _predict(
        self, dataset: StreamingLogitDataset, description: str, ignore_keys: list[str] | None, prefix: str
    ) -> Any:
        """By transformers' loop over full logits; of its figures only those that are not ours already."""
        loader: Any = EvaluationLoader(dataset, self._evaluation_batches(dataset))
        found = self.evaluation_loop(
            loader,
            description,
            prediction_loss_only=False,
            ignore_keys=ignore_keys,
            metric_key_prefix=prefix,
        )
        own = (f"{prefix}_loss", f"{prefix}_runtime", f"{prefix}_model_preparation_time")
        metrics = {name: value for name, value in (found.metrics or {}).items() if name not in own}
        return found._replace(metrics=metrics)

    def _evaluation_batches(self, dataset: StreamingLogitDataset) -> Iterator[dict[str, Tensor]]:
        assert self.collator is not None
        return evaluation_batches(dataset, self.collator, self.args.max_eval_sequences)

    def _evaluation_set(self, dataset: Any) -> StreamingLogitDataset:
        check_types(self.logit_dataset, dataset)
        if not isinstance(dataset, StreamingLogitDataset):
            raise ValueError("evaluation needs a StreamingLogitDataset: give eval_dataset")
        return dataset


def evaluation_sets(given: Any) -> dict[str, StreamingLogitDataset]:
    """By name; "" is that of a single one."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {"": given}


def check_types(train_dataset: Any, eval_dataset: Any) -> None:
    """Raises TypeError for datasets of another kind, ValueError for one that is both."""
    for name, dataset in (("train_dataset", train_dataset), *_named(eval_dataset)):
        if not isinstance(dataset, StreamingLogitDataset):
            raise TypeError(
                f"{name} is a {type(dataset).__name__}, which has no teacher's labels; give a "
                "StreamingLogitDataset of a store"
            )
    for name, dataset in _named(eval_dataset):
        if dataset.packing is not None:
            raise ValueError(f"{name} has packing, but evaluation pads; construct it without")
    if any(dataset is train_dataset for _, dataset in _named(eval_dataset)):
        raise ValueError(
            "the dataset for evaluation is the one for training: each evaluation would move the place where "
            "training reads. Construct another, with HeldOut(fraction, 'held_out') for records of its own"
        )


def _named(eval_dataset: Any) -> list[tuple[str, Any]]:
    return [
        (f"eval_dataset {name}".strip(), dataset) for name, dataset in evaluation_sets(eval_dataset).items()
    ]
