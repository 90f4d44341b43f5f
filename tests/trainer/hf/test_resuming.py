"""A run that is stopped and gone on with ends as the unbroken one, and not in another place or store."""

import json
import re
import shutil
from typing import Any

import pytest
import torch
from torch.nn.modules.module import _IncompatibleKeys
from transformers import EarlyStoppingCallback, TrainerCallback

from logitstore.errors import StoreChangedError
from tests.trainer.stores import make_store
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.errors import SettingError
from trainer.hf.checkpoints import DATASET_STATE_NAME, SETTINGS_NAME, last_checkpoint

pytestmark = pytest.mark.slow


def test_a_tied_head_is_not_told_of_as_missing_when_a_run_goes_on(small_store, tmp_path, monkeypatch):
    trainer: Any = tiny_trainer(small_store, tmp_path)
    told: list[str] = []
    monkeypatch.setattr("transformers.trainer.logger.warning", told.append)
    for tie, names in ((True, ["model.norm.weight"]), (False, ["lm_head.weight", "model.norm.weight"])):
        trainer.model.config.tie_word_embeddings = tie
        trainer.model.post_init()
        told.clear()
        trainer._issue_warnings_after_load(_IncompatibleKeys(["lm_head.weight", "model.norm.weight"], []))
        assert told == [f"There were missing keys in the checkpoint model loaded: {names}."]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_where_the_unbroken_one_does(small_store, tmp_path, accumulation):
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": accumulation,
        "max_steps": 14 // accumulation + 3,
    }
    whole = tiny_trainer(small_store, tmp_path / "whole", **settings)
    whole.train()
    broken = tiny_trainer(
        small_store, tmp_path / "broken", **settings, save_strategy="steps", save_steps=4 // accumulation
    )
    broken.train()
    checkpoints = sorted(
        (tmp_path / "broken").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    for name in (checkpoints[0], checkpoints[-1]):
        later = tiny_trainer(small_store, tmp_path / "later", model=tiny_student(seed=9), **settings)
        later.train(resume_from_checkpoint=str(name))
        assert torch.allclose(weights(later.model), weights(whole.model), atol=1e-6), name.name
        assert later.state.epoch == pytest.approx(whole.state.epoch)
    assert last_checkpoint(tmp_path / "broken") == str(checkpoints[-1])


def test_the_log_of_a_resumed_run_is_that_of_the_unbroken_one(small_store, tmp_path):
    """Its first line was a mean over the steps since the resume, where the other had one over more."""
    settings: dict[str, Any] = {"max_steps": 9, "logging_steps": 4, "save_strategy": "steps", "save_steps": 6}
    whole = tiny_trainer(small_store, tmp_path / "whole", **settings)
    whole.train()
    later = tiny_trainer(small_store, tmp_path / "later", model=tiny_student(seed=9), **settings)
    later.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-6"))
    lines = [
        {
            entry["step"]: (entry["loss"], entry["num_rows"], entry["distillation"])
            for entry in log
            if "loss" in entry
        }
        for log in (whole.state.log_history, later.state.log_history)
    ]
    assert list(lines[0]) == list(lines[1]) == [4, 6, 8, 9]
    assert lines[0][8] == pytest.approx(lines[1][8], rel=1e-4)


def test_the_log_has_a_line_at_the_best_checkpoint(small_store, tmp_path):
    """Which is known after the step's line: that of a resumed run was over fewer steps than the unbroken one's."""
    settings: dict[str, Any] = {
        "max_steps": 6, "logging_steps": 5, "eval_strategy": "steps", "eval_steps": 2,
        "save_strategy": "best", "metric_for_best_model": "kl", "greater_is_better": False,
    }  # fmt: skip
    whole = tiny_trainer(small_store, tmp_path, **settings)
    whole.train()
    later = tiny_trainer(small_store, tmp_path / "later", model=tiny_student(seed=3), **settings)
    later.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = [
        [
            (entry["step"], entry["num_rows"], entry["loss"])
            for entry in one.state.log_history
            if "loss" in entry
        ]
        for one in (whole, later)
    ]
    assert [step for step, *_ in lines[0]] == [2, 4, 5, 6]
    assert [line[:2] for line in lines[1]] == [line[:2] for line in lines[0]]
    assert [line[2] for line in lines[1]] == pytest.approx([line[2] for line in lines[0]], rel=1e-4)


def with_adapters(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    settings = peft.LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, settings)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_drops_out_what_the_unbroken_one_does(small_store, tmp_path, lora, num_workers):
    def make(name, **arguments):
        student = tiny_student(dropout=0.3)
        return tiny_trainer(
            small_store,
            tmp_path / name,
            model=with_adapters(student) if lora else student,
            max_steps=14,
            dataloader_num_workers=num_workers,
            **arguments,
        )

    whole = make("whole", save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=3)
    whole.train()
    for step in (4, 12):  # of the first epoch, and the second
        later = make("later", eval_strategy="steps", eval_steps=3)
        later.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(weights(later.model), weights(whole.model)), step
    other = make("other", seed=1)
    other.train()
    assert not torch.equal(weights(other.model), weights(whole.model)), "dropout should have mattered"


def test_resume_with_another_batch_size_goes_on_at_the_same_sequence(small_store, tmp_path):
    tiny_trainer(small_store, tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    state = json.loads((tmp_path / "checkpoint-3" / DATASET_STATE_NAME).read_text())
    assert state["consumed"] == 12
    trainer = tiny_trainer(small_store, tmp_path / "b", batch_size=2, max_steps=5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.logit_dataset.consumed == 12 + 2 * 2


def test_a_checkpoint_without_the_place_of_the_data_is_refused(small_store, tmp_path):
    tiny_trainer(small_store, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    (tmp_path / "checkpoint-2" / DATASET_STATE_NAME).unlink()
    with pytest.raises(FileNotFoundError, match="starting from zero would train on data twice"):
        tiny_trainer(small_store, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_of_another_store_is_refused(small_store, tmp_path):
    tiny_trainer(small_store, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    make_store(tmp_path / "other", (20, 20), seed=3)
    with pytest.raises(StoreChangedError):
        tiny_trainer(tmp_path / "other", tmp_path).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_checkpoint_folders_hold_the_place_before_anything_else(small_store, tmp_path):
    """A kill between the files of a checkpoint must not leave one that would resume from zero."""
    tiny_trainer(small_store, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert times[DATASET_STATE_NAME] == min(times.values())
    (folder / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) is None
    shutil.rmtree(folder)


def test_a_checkpoint_whose_last_file_was_cut_is_none(tmp_path):
    """By a full disk, say; the one before it is gone on from."""
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_'), (6, "")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / DATASET_STATE_NAME).write_text("{}")
        (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_resumed_run_has_the_intervals_of_its_arguments(small_store, tmp_path):
    """It went on with those of the checkpoint, whatever was given."""
    made: dict[str, Any] = {"eval_strategy": "steps", "save_strategy": "steps"}
    tiny_trainer(small_store, tmp_path, **made, eval_steps=2, save_steps=2).train()
    given: dict[str, Any] = {**made, "eval_steps": 3, "save_steps": 4, "logging_steps": 5, "max_steps": 12}
    trainer = tiny_trainer(small_store, tmp_path, **given)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    later = [entry for entry in trainer.state.log_history if entry["step"] > 6]
    assert [entry["step"] for entry in later if "eval_kl" in entry] == [9, 12]
    assert [entry["step"] for entry in later if "loss" in entry] == [8, 10, 12]  # and at checkpoints
    saved = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert saved == {2, 4, 6, 8, 12}


def test_a_resumed_run_stops_early_where_the_unbroken_one_does(small_store, tmp_path):
    """It forgot how long there had been nothing better, and a second training remembered it of the first."""
    settings: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "metric_for_best_model": "kl",
        "greater_is_better": True,  # the KL falls, so the first one stays the best
    }

    def make(**more):
        stop = {"callbacks": [EarlyStoppingCallback(3)]}
        return tiny_trainer(small_store, tmp_path, trainer=stop, **settings, **{"max_steps": 20, **more})

    whole = make()
    for _ in range(2):
        whole.train()
        assert whole.state.global_step == 8
    for step in (2, 4, 6):
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == 8, step


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"alpha": 1.0}, "alpha 0.5 there, 1.0 now"),
        ({"temperature": 2.0}, "temperature 1.0 there, 2.0 now"),
        ({"optim": "rmsprop"}, "optim 'sgd' there, 'rmsprop' now"),
        ({"learning_rate": 0.1, "weight_decay": 0.1}, "learning_rate 0.5 there, 0.1 now; weight_decay 0.0"),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_refused(small_store, tmp_path, changed, words):
    """The optimizer went on with its own learning rate, silently; others failed by a KeyError of torch's."""
    tiny_trainer(small_store, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = tiny_trainer(small_store, tmp_path, **changed)
    with pytest.raises(SettingError, match=re.escape(words)):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (tmp_path / "checkpoint-2" / SETTINGS_NAME).unlink()  # as earlier versions saved it
    tiny_trainer(small_store, tmp_path, alpha=1.0).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )


def test_a_checkpoint_without_its_optimizer_is_refused(small_store, tmp_path):
    """Optimizer and schedule began anew in the middle of the run."""
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    tiny_trainer(small_store, tmp_path, max_steps=2, **saved).train()
    with pytest.raises(SettingError, match=r"holds no optimizer .*give the checkpoint as the model"):
        tiny_trainer(small_store, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_within_a_step_reads_its_batches_again(small_store, tmp_path):
    """As transformers saves one at SIGTERM: those batches were read, and nothing was learned from them."""
    whole = tiny_trainer(small_store, tmp_path / "whole", max_steps=6)
    whole.train()

    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            if state.global_step == 3:
                assert trainer.model is not None
                trainer._save_checkpoint(trainer.model, trial=None)
                control.should_training_stop = True

    trainer = tiny_trainer(small_store, tmp_path, max_steps=6)
    trainer.add_callback(Stop)
    trainer.train()
    again = tiny_trainer(small_store, tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(again.model), weights(whole.model))
