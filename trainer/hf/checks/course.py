"""Whether the evaluations, checkpoints and stops that the arguments ask for can come, before the first step.

Otherwise transformers says so at the first evaluation, or never.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import SettingError, TrainingWarning
from trainer.hf.epochs import total_steps
from trainer.hf.evaluation.better import HIGHER_IS_BETTER, LOWER_IS_BETTER
from trainer.hf.evaluation.evaluate import tokenizer_size_of


def check_course(
    args: Any,
    train_dataset: StreamingLogitDataset,
    sets: Mapping[str, StreamingLogitDataset],
    callbacks: Iterable[Any],
    *,
    has_own_metrics: bool,
) -> None:
    """Raises SettingError for what cannot come, and warns of what would come to nothing.

    `sets` are those for evaluation, by name. With `has_own_metrics` further figures are not known yet.
    """
    stops = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
    _check_evaluated(args, stops)
    _check_writable(args)
    if args.eval_strategy != IntervalStrategy.NO and not sets:
        raise SettingError(
            f"eval_strategy={args.eval_strategy.value!r} has nothing to evaluate on: eval_dataset is empty; "
            "give a StreamingLogitDataset, or several by name"
        )
    if not has_own_metrics:
        check_metric(args, sets, ())
    num_steps = total_steps(args, train_dataset)
    num_evaluations = _num_evaluations(args, train_dataset, num_steps)
    if args.eval_strategy != IntervalStrategy.NO and not num_evaluations:
        raise SettingError(
            f"eval_delay={args.eval_delay:g} lies beyond the end of training ({num_steps} steps), so nothing "
            f"is evaluated, though eval_strategy={args.eval_strategy.value!r}; lower it, or leave it out"
        )
    if not args.process_index:  # the first process says it for all
        _warn_of_the_end(args, stops, num_evaluations, num_steps)


def _warn_of_the_end(
    args: Any, stops: list[EarlyStoppingCallback], num_evaluations: int, num_steps: int
) -> None:
    """Warns of stops that cannot come, and of a warm-up that does not end."""
    for stop in stops:
        if stop.early_stopping_patience >= num_evaluations:
            warnings.warn(
                f"early_stopping_patience={stop.early_stopping_patience} (in a configuration "
                f"evaluation.patience) never stops: in {num_steps} steps there are {num_evaluations} "
                "evaluations, the first of which is the best so far; evaluate more often, or lower it",
                TrainingWarning,
                stacklevel=2,
            )
    warmup_steps = args.get_warmup_steps(num_steps)
    if warmup_steps > num_steps:
        warnings.warn(
            f"warmup_steps={args.warmup_steps:g} are more than the {num_steps} steps of training: the "
            f"learning rate ends at {num_steps / warmup_steps:.0%} of learning_rate={args.learning_rate:g}",
            TrainingWarning,
            stacklevel=2,
        )


def check_metric(args: Any, sets: Mapping[str, StreamingLogitDataset], own: Collection[str]) -> None:
    """Raises SettingError for a `metric_for_best_model` that no evaluation reports, or that says nothing of
    the student. `own` are the names of the figures of `compute_metrics`."""
    metric = args.metric_for_best_model
    if metric is None or not sets:
        return
    wanted = metric if metric.startswith("eval_") else f"eval_{metric}"
    prefixes = {name: f"eval_{name}_" if name else "eval_" for name in sets}
    known = {f"{prefixes[name]}{figure}" for name, one in sets.items() for figure in (*_figures(one), *own)}
    if wanted in known:
        return
    figures = ", ".join(sorted({figure for one in sets.values() for figure in _figures(one)} | {*own}))
    named = f"the name of a set ({', '.join(sets)}), then _, then " if "" not in sets else ""
    raise SettingError(
        f"metric_for_best_model={metric!r} is no figure of an evaluation by which students are compared; "
        f"give {named}one of {figures}"
    )


def _figures(dataset: StreamingLogitDataset) -> list[str]:
    """Names of the figures by which one student is better than another."""
    absent = () if tokenizer_size_of(dataset) else ("mass_beyond_tokenizer",)
    return [name for name in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER) if name not in absent]


def _check_evaluated(args: Any, stops: list[EarlyStoppingCallback]) -> None:
    """What goes by evaluations needs some."""
    is_best_kept = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    if args.eval_strategy == IntervalStrategy.NO and (is_best_kept or stops):
        name = (
            "EarlyStoppingCallback"
            if not is_best_kept
            else "load_best_model_at_end=True"
            if args.load_best_model_at_end
            else "save_strategy='best'"
        )
        raise SettingError(f"{name} goes by evaluations, and eval_strategy='no' has none; give 'steps'")
    if stops and args.metric_for_best_model is None:
        raise SettingError(
            "EarlyStoppingCallback waits for a better figure, and metric_for_best_model does not say which; "
            "give 'kl', say"
        )


def _check_writable(args: Any) -> None:
    if not args.should_save or args.save_strategy == SaveStrategy.NO:
        return
    folder = Path(args.output_dir).absolute()  # a run that begins anew has removed it
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        raise SettingError(
            f"output_dir={args.output_dir!r} cannot be written, so no checkpoint could be saved; correct its "
            "rights, or choose another folder"
        )


def _num_evaluations(args: Any, dataset: StreamingLogitDataset, num_steps: int) -> int:
    """As transformers does them: every so many steps and after the last one, or after each epoch."""
    if args.eval_strategy == IntervalStrategy.NO:
        return 0
    if args.eval_strategy == IntervalStrategy.EPOCH:
        per_epoch = max(1, -(-dataset.steps_per_epoch // args.gradient_accumulation_steps))
        ends = [*range(per_epoch, num_steps, per_epoch), num_steps]
        return sum(end / per_epoch >= args.eval_delay for end in ends)
    every = max(1, math.ceil(num_steps * args.eval_steps) if args.eval_steps < 1 else int(args.eval_steps))
    return sum(step >= args.eval_delay for step in {*range(every, num_steps + 1, every), num_steps})
