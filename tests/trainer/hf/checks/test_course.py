"""Evaluations, checkpoints and stops that cannot come are refused before the first step, not at their time."""

import os
import warnings
from typing import Any

import pytest
from transformers import EarlyStoppingCallback

from tests.trainer.students import tiny_trainer
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.errors import SettingError
from trainer.hf.arguments import OfflineDistillationConfig

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
BEST = {**EVALUATED, "load_best_model_at_end": True}


def held_out(store, fraction=0.2):
    return StreamingLogitDataset(store, held_out=HeldOut(fraction, "held_out"), batch_size=4)


@pytest.mark.parametrize(
    "arguments",
    [
        {**BEST, "metric_for_best_model": "klx"},
        {**EVALUATED, "metric_for_best_model": "eval_accurcy"},
        {"eval_strategy": "steps", "save_strategy": "best", "metric_for_best_model": "nope"},
        {**EVALUATED, "lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "perplexity"},
        {**BEST, "metric_for_best_model": "num_rows"},
        {**BEST, "metric_for_best_model": "runtime"},
        {**BEST, "metric_for_best_model": "held_out_kl"},
    ],
    ids=lambda given: given["metric_for_best_model"],
)
def test_a_figure_that_no_evaluation_reports_is_refused_at_construction(small_store, tmp_path, arguments):
    name = arguments["metric_for_best_model"]
    with pytest.raises(SettingError, match=f"metric_for_best_model='{name}' is no figure.*give one of.* kl,"):
        tiny_trainer(small_store, tmp_path, **arguments)


def test_figures_of_several_sets_go_by_the_names_of_the_sets(small_store, tmp_path):
    sets = {"few": held_out(small_store), "rest": held_out(small_store, 0.5)}
    for name in ("kl", "eval_kl", None, "fewkl", "other_kl"):
        with pytest.raises(SettingError, match=r"the name of a set \(few, rest\), then _, then one of"):
            tiny_trainer(small_store, tmp_path, eval_dataset=sets, **BEST, metric_for_best_model=name)
    for name in ("few_kl", "eval_rest_accuracy"):
        tiny_trainer(small_store, tmp_path, eval_dataset=sets, **BEST, metric_for_best_model=name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"save_strategy": "best", "metric_for_best_model": "kl"},
            "save_strategy='best' goes by evaluations",
        ),
        ({"load_best_model_at_end": True}, "load_best_model_at_end=True goes by evaluations"),
        ({**EVALUATED, "eval_delay": 7}, "eval_delay=7 lies beyond the end of training .6 steps."),
        ({"eval_strategy": "epoch", "eval_delay": 1}, "eval_delay=1 lies beyond"),
    ],
    ids=str,
)
def test_evaluations_that_never_come_are_refused(small_store, tmp_path, arguments, words):
    with pytest.raises(SettingError, match=words):
        tiny_trainer(small_store, tmp_path, **arguments)
    tiny_trainer(small_store, tmp_path, **EVALUATED, eval_delay=6)


def test_stopping_early_needs_a_figure_and_evaluations(small_store, tmp_path):
    stop: dict[str, Any] = {"trainer": {"callbacks": [EarlyStoppingCallback(2)]}}
    with pytest.raises(SettingError, match="metric_for_best_model does not say which"):
        tiny_trainer(small_store, tmp_path, **EVALUATED, **stop)
    with pytest.raises(SettingError, match="EarlyStoppingCallback goes by evaluations"):
        tiny_trainer(small_store, tmp_path, metric_for_best_model="kl", **stop)
    later = tiny_trainer(small_store, tmp_path)
    later.add_callback(EarlyStoppingCallback(2))
    with pytest.raises(SettingError, match="EarlyStoppingCallback goes by evaluations"):
        later.train()


@pytest.mark.parametrize(("patience", "is_said"), [(2, False), (3, True)])
def test_a_stop_that_cannot_come_is_said(small_store, tmp_path, patience, is_said):
    """Of three evaluations the first is the best so far, so two can be without a better one."""
    stop: dict[str, Any] = {"trainer": {"callbacks": [EarlyStoppingCallback(patience)]}}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiny_trainer(small_store, tmp_path, **EVALUATED, metric_for_best_model="kl", **stop)
    words = [str(one.message) for one in said if "never stops" in str(one.message)]
    assert len(words) == is_said
    assert not is_said or "in 6 steps there are 3 evaluations" in words[0]


def test_a_warm_up_that_does_not_end_is_said(small_store, tmp_path):
    schedule: dict[str, Any] = {"lr_scheduler_type": "linear", "max_steps": 6}
    with pytest.warns(UserWarning, match="warmup_steps=24 are more than the 6 steps .* ends at 25% of"):
        tiny_trainer(small_store, tmp_path, **schedule, warmup_steps=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny_trainer(small_store, tmp_path, **schedule, warmup_steps=6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0),
        ("max_steps", -5),
        ("save_total_limit", 0),
        ("gradient_accumulation_steps", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", "5e-5"),
        ("weight_decay", -0.1),
        ("adam_beta2", 1.0),
        ("chunk_rows", 0),
        ("max_eval_sequences", 0),
        ("eval_delay", -1),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}"):
        OfflineDistillationConfig(use_cpu=True, **{name: value})


@pytest.mark.parametrize("name", ["eval", "save", "logging"])
@pytest.mark.parametrize("steps", [-3, float("nan")])
def test_intervals_are_above_zero(name, steps):
    with pytest.raises(ValueError, match=f"^{name}_steps={steps} must be finite and above 0"):
        OfflineDistillationConfig(use_cpu=True, **{f"{name}_strategy": "steps", f"{name}_steps": steps})
    with pytest.raises(ValueError, match=r"^num_train_epochs=0 must be finite and above 0"):
        OfflineDistillationConfig(use_cpu=True, num_train_epochs=0)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_checkpoint(
    small_store, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) != str(tmp_path / "run")
    )  # as root, all can
    with pytest.raises(SettingError, match=r"output_dir='.*run' cannot be written"):
        tiny_trainer(small_store, tmp_path / "run", **EVALUATED)
    tiny_trainer(small_store, tmp_path / "run")  # saves nothing


@pytest.mark.slow
def test_figures_of_ones_own_are_tried_before_the_first_step(small_store, tmp_path):
    asked: list[int] = []

    def own(prediction):
        asked.append(len(prediction.label_ids))
        return {"bleu": 1.0}

    arguments: dict[str, Any] = {**BEST, "trainer": {"compute_metrics": own}}
    misspelt = tiny_trainer(small_store, tmp_path, **arguments, metric_for_best_model="blue")
    with pytest.raises(SettingError, match=r"'blue' is no figure.*one of .*bleu"):
        misspelt.train()
    assert asked == [4]
    assert misspelt.state.global_step == 0
    trainer = tiny_trainer(small_store, tmp_path, **arguments, metric_for_best_model="bleu")
    with pytest.warns(UserWarning, match="'bleu' is a figure of compute_metrics: its highest value is taken"):
        trainer.train()
    assert trainer.state.best_metric == 1.0


@pytest.mark.slow
def test_figures_that_fail_do_so_before_the_first_step(small_store, tmp_path):
    def needs_more_than_a_batch(prediction):
        return {"share": 1 / (len(prediction.label_ids) - 4)}

    def broken(_):
        raise ZeroDivisionError("of one's own")

    arguments: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 3}
    tiny_trainer(
        small_store, tmp_path, **arguments, trainer={"compute_metrics": needs_more_than_a_batch}
    ).train()
    trainer = tiny_trainer(small_store, tmp_path, **arguments, trainer={"compute_metrics": broken})
    with pytest.raises(ZeroDivisionError, match="of one's own"):
        trainer.train()
    assert trainer.state.global_step == 0
