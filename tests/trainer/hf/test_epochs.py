"""A training reads its epochs to the end, in as many steps as it says, and logs every one of them."""

import json
import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from tests.trainer.students import tiny_student, tiny_trainer
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.packed_rows import Packing
from trainer.data.sources import HeldOut
from trainer.hf.checkpoints import DATASET_STATE_NAME
from trainer.hf.epochs import Place, epochs_to_begin, steps_to_end

ROW = 24
"""Tokens of a packed row."""


def lines(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def num_labels(trainer, num_epochs=1):
    return num_epochs * trainer.logit_dataset.labels_within(None)


def packed(store, batch_size, seed=1):
    return StreamingLogitDataset(
        store,
        batch_size=batch_size,
        num_splits=3,
        seed=seed,
        packing=Packing(ROW),
        held_out=HeldOut(0.2),
    )


def packed_trainer(store, folder, *, seed_of_data=1, **arguments):
    return tiny_trainer(
        store,
        folder,
        batch_size=1,
        train_dataset=packed(store, 1, seed_of_data),
        collate={"pack_length": ROW},
        lr_scheduler_type="linear",
        **{"max_steps": -1, **arguments},
    )


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_steps": 7, "logging_steps": 5}, [5, 7]),
        ({"max_steps": 3, "logging_steps": 500}, [3]),
        ({"max_steps": 4, "logging_steps": 0.4}, [2, 4]),
        ({"max_steps": 7, "logging_strategy": "epoch"}, [7]),
        ({"max_steps": -1, "num_train_epochs": 1, "logging_steps": 9}, [9, 12]),
        ({"max_steps": -1, "num_train_epochs": 0.3, "logging_steps": 9}, [4]),
        ({"max_steps": 3, "logging_strategy": "no"}, []),
    ],
    ids=str,
)
def test_the_last_steps_have_a_line_of_the_log(small_store, tmp_path, arguments, steps):
    """What came after the last multiple of logging_steps was in no line: its loss, fill and cut rows."""
    trainer = tiny_trainer(small_store, tmp_path, **arguments)
    trainer.train()
    assert [entry["step"] for entry in lines(trainer)] == steps
    every = tiny_trainer(
        small_store, tmp_path, **{**arguments, "logging_strategy": "steps", "logging_steps": 1}
    )
    every.train()
    if steps:
        assert sum(e["num_rows"] for e in lines(trainer)) == sum(e["num_rows"] for e in lines(every))
        assert lines(trainer)[-1]["learning_rate"] == lines(every)[-1]["learning_rate"]


def test_a_training_that_is_stopped_has_a_line_of_its_last_steps(small_store, tmp_path):
    """Whether an evaluation that was no better stopped it, or a callback that somebody adds later."""
    evaluated: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "kl", "greater_is_better": True
    }  # fmt: skip
    stop = {"callbacks": [EarlyStoppingCallback(1)]}
    early = tiny_trainer(small_store, tmp_path, max_steps=20, logging_steps=3, trainer=stop, **evaluated)
    early.train()
    assert [entry["step"] for entry in lines(early)] == [3, 4]

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 5

    stopped = tiny_trainer(small_store, tmp_path, max_steps=20, logging_steps=3)
    stopped.add_callback(Stop)
    stopped.train()
    assert [entry["step"] for entry in lines(stopped)] == [3, 5]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_parts_of_epochs_are_rounded_as_transformers_does_it_from_every_place(accumulation):
    """A part of the last one, rounded alone, was a step more: of 2.1 epochs of 10 steps 22, and not 21."""
    for whole in range(1, 40):
        steps = whole * accumulation
        dataset: Any = SimpleNamespace(
            packing=None, steps_from=lambda _, consumed=0, steps=steps: steps - consumed
        )
        for num_epochs in (number / 100 for number in range(1, 400, 3)):
            args = SimpleNamespace(num_train_epochs=num_epochs, gradient_accumulation_steps=accumulation)
            end = math.ceil(num_epochs * whole)
            for done in {0, whole // 2, end // 2, end - 1, end}:
                place = Place(done, done // whole, done % whole * accumulation)
                assert done + steps_to_end(args, dataset, place) == max(end, done), (num_epochs, whole, done)


def test_epochs_without_end_are_counted_at_once():
    """As given where patience is to end a training."""
    dataset: Any = SimpleNamespace(packing=None, steps_from=lambda _, consumed=0: 10 - consumed)
    args = SimpleNamespace(num_train_epochs=1e15, gradient_accumulation_steps=1)
    assert steps_to_end(args, dataset, Place(13, 1, 3)) == 10**16 - 13
    assert epochs_to_begin(args, dataset, Place(13, 1, 3), 10**16) == 10**15
    assert [epochs_to_begin(args, dataset, Place(), steps) for steps in (1, 10, 11, 20, 21)] == [
        1,
        1,
        2,
        2,
        3,
    ]


@pytest.mark.slow
def test_a_part_of_an_epoch_that_is_gone_on_with_has_the_steps_of_the_unbroken_one(small_store, tmp_path):
    settings: dict[str, Any] = {
        "max_steps": -1, "num_train_epochs": 2.1, "batch_size": 5, "save_strategy": "steps", "save_steps": 5
    }  # fmt: skip
    whole = tiny_trainer(small_store, tmp_path, **settings)
    assert whole.logit_dataset.steps_from(0) == 10
    whole.train()
    later = tiny_trainer(small_store, tmp_path / "later", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert later.state.global_step == whole.state.global_step == 21


@pytest.mark.slow
def test_a_checkpoint_of_more_than_is_asked_for_now_says_that_nothing_is_left(small_store, tmp_path):
    """It was said to be of other batches, and to end "with all 1 epochs of the data"."""
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 15}
    tiny_trainer(small_store, tmp_path, max_steps=-1, num_train_epochs=2, **saved).train()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_steps": -1, "num_train_epochs": 1}, "all of num_train_epochs=1 behind it"),
        ({"max_steps": 14}, "all of max_steps=14 behind it"),
    ]
    for given, words in cases:
        later = tiny_trainer(small_store, tmp_path / "later", **given)
        with pytest.warns(
            UserWarning, match=f"nothing is left to train: the checkpoint of 15 steps has {words}"
        ):
            later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
        assert later.state.global_step == 15


@pytest.mark.slow
@pytest.mark.parametrize("done", [4, 14])
def test_data_whose_state_was_loaded_are_trained_on_to_the_end(small_store, tmp_path, done):
    """The steps before that place were counted too: the last line of the log and the last checkpoint never
    came, and the schedule did not reach its end. In a later epoch nothing could be trained."""
    settings: dict[str, Any] = {
        "max_steps": -1, "num_train_epochs": 2, "lr_scheduler_type": "linear", "logging_steps": 50
    }  # fmt: skip
    first = tiny_trainer(small_store, tmp_path, max_steps=done)
    first.train()
    dataset = tiny_trainer(small_store, tmp_path).logit_dataset
    dataset.load_state_dict(first.logit_dataset.state_dict())
    later = tiny_trainer(
        small_store,
        tmp_path / "later",
        train_dataset=dataset,
        save_strategy="steps",
        save_steps=50,
        **settings,
    )
    for _ in range(2):
        later.train()
        assert later.state.global_step == later.state.max_steps == 24 - done
        assert [entry["step"] for entry in lines(later)] == [24 - done]
        assert lines(later)[-1]["learning_rate"] == pytest.approx(0.5 / (24 - done))
        assert (tmp_path / "later" / f"checkpoint-{24 - done}").exists()
    assert later.state.epoch == 2
    dataset.load_state_dict(later.logit_dataset.state_dict())
    with pytest.warns(UserWarning, match="nothing is left to train: the state that the data were given has"):
        later.train()
    assert later.state.global_step == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_epochs", [1, 3, 2.5])
def test_packed_epochs_are_trained_to_their_end(small_store, tmp_path, num_epochs):
    """They differ by some rows, and all were taken to have those of the first: the last checkpoint and
    evaluation never came where it has more, and rows were left out where it has fewer."""
    counts = [packed(small_store, 1).steps_from(epoch) for epoch in range(4)]
    assert len(set(counts)) > 1, "the test wants epochs that differ"
    trainer = packed_trainer(
        small_store, tmp_path, num_train_epochs=num_epochs, save_strategy="steps", save_steps=1000,
        eval_strategy="steps", eval_steps=1000,
    )  # fmt: skip
    trainer.train()
    whole, part = int(num_epochs), num_epochs % 1
    steps = sum(counts[:whole]) + (-(-int(2 * part) * counts[whole] // 2) if part else 0)
    assert trainer.state.global_step == trainer.state.max_steps == steps
    assert (tmp_path / f"checkpoint-{steps}").exists()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_kl" in entry] == [steps]
    assert lines(trainer)[-1]["learning_rate"] == pytest.approx(0.5 / steps)
    if not part:
        assert sum(entry["num_rows"] for entry in lines(trainer)) == num_labels(trainer, whole)


@pytest.mark.slow
def test_steps_that_are_given_are_reached_however_long_packed_epochs_are(small_store, tmp_path):
    def lengths(seed):
        return [packed(small_store, 1, seed=seed).steps_from(epoch) for epoch in range(3)]

    seed = next(seed for seed in range(50) if sum(lengths(seed)) < 3 * lengths(seed)[0])
    trainer = packed_trainer(small_store, tmp_path, seed_of_data=seed, max_steps=3 * lengths(seed)[0])
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now", "accumulation"), [(4, 2, 1), (2, 4, 1), (2, 8, 1), (4, 2, 4)])
def test_epochs_that_go_on_in_other_batches_are_trained_to_their_end(
    small_store, tmp_path, before, now, accumulation
):
    """Larger steps made the run end at once, as if finished, since it had so many steps already; smaller ones
    let it end without its last checkpoint and evaluation, at a fraction of the schedule."""
    epochs: dict[str, Any] = {
        "max_steps": -1, "num_train_epochs": 2, "lr_scheduler_type": "linear", "save_strategy": "steps"
    }  # fmt: skip
    tiny_trainer(small_store, tmp_path, batch_size=before, **epochs, save_steps=13).train()
    state = json.loads((tmp_path / "checkpoint-13" / DATASET_STATE_NAME).read_text())
    later = tiny_trainer(
        small_store, tmp_path / "b", model=tiny_student(seed=3), batch_size=now, save_steps=1000, **epochs,
        gradient_accumulation_steps=accumulation, eval_strategy="steps", eval_steps=1000,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the checkpoint's 13 steps were of other batches"):
        later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    steps, dataset = later.state.global_step, later.logit_dataset
    assert (dataset.epoch, dataset.consumed) == (1, dataset.epoch_length)
    left = 2 * dataset.epoch_length - state["epoch"] * dataset.epoch_length - state["consumed"]
    assert steps - 13 == pytest.approx(left / now / accumulation, abs=2)
    assert steps == later.state.max_steps
    assert (tmp_path / "b" / f"checkpoint-{steps}").exists()
    assert [entry["step"] for entry in later.state.log_history if "eval_kl" in entry] == [steps]
    assert 0 < lines(later)[-1]["learning_rate"] <= 0.5 / steps * 1.001


@pytest.mark.slow
def test_steps_that_are_given_are_reached_in_other_batches(small_store, tmp_path):
    """The epochs that they reach into were counted as if all steps had been the present ones."""
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 30}
    tiny_trainer(small_store, tmp_path, batch_size=4, max_steps=30, **saved).train()
    later = tiny_trainer(small_store, tmp_path / "b", batch_size=2, max_steps=40)
    later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    assert later.state.global_step == 40
