"""Evaluation and prediction on stores, within transformers' Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy, PredictionOutput, speed_metrics

from trainer.batch.collate import DistillationCollator
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import SettingError, TrainingWarning
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.checks.course import check_metric
from trainer.hf.evaluation.calibration import CalibrationSums
from trainer.hf.evaluation.evaluate import (
    Evaluation,
    EvaluationLoader,
    evaluate,
    evaluation_batches,
    evaluation_steps,
    tokenizer_size_of,
)
from trainer.hf.heads import Head
from trainer.loss.loss_settings import LossSettings

EvaluationSets = StreamingLogitDataset | Mapping[str, StreamingLogitDataset]
"""One set, or several by name."""


class EvaluatingTrainer(Trainer):
    """The part of OfflineDistillationTrainer that compares the student with its teacher."""

    args: OfflineDistillationConfig
    _collator: DistillationCollator | None = None
    head: Head | None
    logit_dataset: StreamingLogitDataset
    loss_settings: LossSettings

    @property
    def collator(self) -> DistillationCollator:
        """Makes the batches of this student. Raises SettingError while the trainer has no student yet."""
        if self._collator is None:
            raise SettingError("this trainer has no student yet, so no batches: use it once it is made")
        return self._collator

    def evaluate(  # type: ignore[override]  # datasets of other kinds have no labels
        self,
        eval_dataset: EvaluationSets | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on held-out records, the same each time; see `trainer.hf.evaluation.evaluate.Evaluation`.

        Of several sets each is evaluated, with its name in the names of the figures; one may be named.
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

    def get_eval_dataloader(  # type: ignore[override]  # as above
        self, eval_dataset: StreamingLogitDataset | str | None = None
    ) -> EvaluationLoader:
        """The batches of an evaluation: padded, at temperature 1, the same ones at each pass."""
        return self._evaluation_loader(self._evaluation_set(eval_dataset))

    def get_test_dataloader(self, test_dataset: StreamingLogitDataset | str) -> EvaluationLoader:  # type: ignore[override]
        return self.get_eval_dataloader(test_dataset)

    def evaluate_student(
        self,
        eval_dataset: StreamingLogitDataset | str | None = None,
        calibration: CalibrationSums | None = None,
    ) -> Evaluation:
        """Evaluates on the held-out records; `calibration` gets the same rows.

        In the precision of training, also before it: accelerate has the student compute so once it trains.
        """
        dataset = self._evaluation_set(eval_dataset)
        with self.accelerator.autocast():
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
        test_dataset: StreamingLogitDataset | str,
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

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.compute_metrics is not None and self.args.eval_strategy != IntervalStrategy.NO:
            self._try_own_metrics()
        return prepared

    def _try_own_metrics(self) -> None:
        """Have `compute_metrics` fail before the first step, if it does, or lack the figure that decides."""
        sets = evaluation_sets(self.eval_dataset)
        dataset = next(iter(sets.values()))
        try:
            found = self._predict(dataset, "Trial", None, "eval", num_batches=1)
        except Exception:  # noqa: BLE001 - a batch may be too few; all of them raise what an evaluation would
            found = self._predict(dataset, "Trial", None, "eval")
        own = {name.removeprefix("eval_") for name in found.metrics}
        check_metric(self.args, sets, own)
        metric = self.args.metric_for_best_model
        if metric is not None and self.args.assumes_greater_is_better and metric.endswith(tuple(own)):
            warnings.warn(
                f"metric_for_best_model={metric!r} is a figure of compute_metrics: its "
                f"{'highest' if self.args.greater_is_better else 'lowest'} value is taken for the best, as "
                "greater_is_better is not given",
                TrainingWarning,
                stacklevel=2,
            )

    def _predict(
        self,
        dataset: StreamingLogitDataset,
        description: str,
        ignore_keys: list[str] | None,
        prefix: str,
        num_batches: int | None = None,
    ) -> Any:
        """By transformers' loop over full logits; of its figures only those that are not ours already."""
        loader: Any = self._evaluation_loader(dataset, num_batches)
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

    def _evaluation_batches(
        self, dataset: StreamingLogitDataset, num_batches: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        return islice(evaluation_batches(dataset, self.collator, self.args.max_eval_sequences), num_batches)

    def _evaluation_loader(
        self, dataset: StreamingLogitDataset, num_batches: int | None = None
    ) -> EvaluationLoader:
        num_steps = evaluation_steps(dataset, self.args.max_eval_sequences)
        return EvaluationLoader(
            dataset,
            num_steps if num_batches is None else min(num_batches, num_steps),
            lambda: self._evaluation_batches(dataset, num_batches),
        )

    def _evaluation_set(self, given: EvaluationSets | str | None) -> StreamingLogitDataset:
        """The set that is given or named, or the only one of the Trainer."""
        sets = evaluation_sets(self.eval_dataset)
        if isinstance(given, str):
            if given not in sets or not given:
                named = f"they are {', '.join(sets)}" if any(sets) else "the Trainer was given none by name"
                raise SettingError(f"there is no evaluation set {given!r}: {named}; eval_dataset names them")
            return sets[given]
        dataset: Any = self.eval_dataset if given is None else given
        if isinstance(dataset, Mapping):
            raise SettingError(
                f"there are several evaluation sets ({', '.join(map(str, dataset))}), and this is of one; "
                f"name it, or give a StreamingLogitDataset"
            )
        if dataset is None:
            raise SettingError(
                "the Trainer has no evaluation set; give a StreamingLogitDataset as eval_dataset"
            )
        check_types(self.logit_dataset, dataset)
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
