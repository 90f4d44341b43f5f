"""The trainer on transformers: gradients, accumulation, adapters, and the stock Trainer."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.sources import HeldOut
from trainer.errors import PackingError, ReshardingError, UnsupportedHeadError
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.evaluation.better import HIGHER_IS_BETTER, LOWER_IS_BETTER
from trainer.hf.evaluation.evaluate import Evaluation
from trainer.hf.stock_trainer import make_compute_loss_func
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

pytestmark = pytest.mark.slow


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_hand(store, *, num_steps, batch_size=4, accumulation=1, settings=None, epochs=1):
    """A bare loop over the dense loss: what every trainer here must equal. Returns (losses, weights)."""
    settings = settings or LossSettings()
    model, history = tiny_student(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    reader = StreamingLogitDataset(store, batch_size=batch_size, num_splits=3, seed=1, held_out=HeldOut(0.2))
    collator = DistillationCollator(
        CollateSettings(temperature=settings.temperature, with_teacher=settings.alpha > 0)
    )
    batches = [batch for _ in range(epochs) for batch in LogitDataLoader(reader, collator)]
    for step in range(num_steps):
        group = batches[step * accumulation : (step + 1) * accumulation]
        num_items = sum(int((batch["labels"] != -100).sum()) for batch in group)
        total = 0.0
        for batch in group:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
            targets = TeacherTargets.from_batch(batch) if settings.alpha > 0 else None
            loss = topk_distillation_loss(
                model(**inputs).logits, batch["labels"], targets, settings, num_items_in_batch=num_items
            ).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        history.append(total)
    return history, weights(model)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "loss", [{}, {"temperature": 2.0, "alpha": 1.0}, {"alpha": 0.0}, {"beta": 0.5}], ids=str
)
def test_training_equals_a_loop_by_hand(small_store, tmp_path, fused, loss):
    trainer = tiny_trainer(small_store, tmp_path, fused=fused, **loss)
    trainer.train()
    history, expected = by_hand(small_store, num_steps=6, settings=LossSettings(**loss))
    assert losses(trainer) == pytest.approx(history, rel=1e-4)
    assert torch.allclose(weights(trainer.model), expected, atol=1e-5)


def test_accumulation_divides_by_the_labels_of_the_whole_step(small_store, tmp_path):
    trainer = tiny_trainer(small_store, tmp_path, batch_size=2, gradient_accumulation_steps=3, max_steps=5)
    trainer.train()
    history, expected = by_hand(small_store, num_steps=5, batch_size=2, accumulation=3)
    assert losses(trainer) == pytest.approx(history, rel=1e-4)
    assert torch.allclose(weights(trainer.model), expected, atol=1e-5)
    whole = by_hand(small_store, num_steps=5, batch_size=6)
    assert torch.allclose(whole[1], expected, atol=1e-5), "the split into micro-batches must not matter"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_and_workers_do_not_change_training(small_store, tmp_path, attention):
    plain = tiny_trainer(small_store, tmp_path / "a")
    student = tiny_student()
    student.set_attn_implementation(attention)
    packed = tiny_trainer(
        small_store, tmp_path / "b", model=student, collate={"pack_length": 48}, dataloader_num_workers=2
    )
    plain.train()
    packed.train()
    assert torch.allclose(weights(plain.model), weights(packed.model), atol=1e-5)


def test_packing_that_is_wrong_for_the_student_is_refused_before_training(small_store, tmp_path):
    student = tiny_student()
    student.set_attn_implementation("eager")
    collate = {"pack_length": 48, "packed_attention": "block_diagonal"}
    with pytest.raises(PackingError, match="Set packed_attention='position_ids'"):
        tiny_trainer(small_store, tmp_path, model=student, collate=collate)


def test_the_stock_trainer_keeps_packed_documents_apart(small_store):
    reader = StreamingLogitDataset(small_store, batch_size=8, shuffle=False)
    given = [reader[index] for index in range(8)]
    found = []
    for collate in ({}, {"pack_length": 48, "packed_attention": "position_ids"}):
        model = tiny_student()
        compute_loss = make_compute_loss_func(model, LossSettings())
        batch = DistillationCollator(CollateSettings(**collate))(given)
        found.append(compute_loss(model(**batch), batch["labels"]).item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("metric", ["kl", "cross_entropy", "calibration_error", "loss", "eval_kl"])
def test_the_checkpoint_with_the_least_kl_is_the_best(small_store, tmp_path, metric):
    trainer = tiny_trainer(
        small_store,
        tmp_path,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    name = f"eval_{metric.removeprefix('eval_')}"
    values = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
    best = min(values, key=lambda step: values[step])
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


def test_every_figure_of_an_evaluation_is_said_to_be_good_high_or_low():
    neither = {"num_sequences", "num_rows", "teacher_mass"}
    named = {item.name for item in fields(Evaluation)} | {"loss"}
    assert {*LOWER_IS_BETTER, *HIGHER_IS_BETTER} | neither == named
    for names, greater in ((LOWER_IS_BETTER, False), (HIGHER_IS_BETTER, True)):
        for name in names:
            config = OfflineDistillationConfig(metric_for_best_model=f"eval_held_out_{name}")
            assert config.greater_is_better is greater, name


def test_the_student_gets_closer_and_evaluation_repeats(small_store, tmp_path):
    trainer = tiny_trainer(
        small_store, tmp_path, max_steps=60, alpha=1.0, optim="adamw_torch", learning_rate=3e-2
    )
    before, again = trainer.evaluate(), trainer.evaluate()
    times = [name for name in before if name.endswith(("_runtime", "_per_second"))]
    assert len(times) == 3
    assert {**again, **dict.fromkeys(times)} == pytest.approx({**before, **dict.fromkeys(times)})
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl"] < 0.9 * before["eval_kl"]
    assert after["eval_num_rows"] == before["eval_num_rows"] > 100
    assert any("eval_kl" in entry for entry in trainer.state.log_history)


def test_logged_terms_are_those_of_the_loss(small_store, tmp_path):
    trainer = tiny_trainer(small_store, tmp_path, alpha=0.3)
    trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            mixed = 0.3 * entry["distillation"] + 0.7 * entry["cross_entropy"]
            assert entry["loss"] == pytest.approx(mixed, rel=1e-4)
            assert 0 < entry["student_mass"] < entry["teacher_mass"] < 1


def test_a_loss_without_a_tail_logs_no_mass_of_the_teacher(small_store, tmp_path):
    """It would be 1 of a distribution over the stored entries alone."""
    trainer = tiny_trainer(small_store, tmp_path, tail="renormalize", collate={"renormalize": True})
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged
    for entry in logged:
        assert "teacher_mass" not in entry
        assert 0 < entry["student_mass"] < 1


def test_without_a_teacher_nothing_is_logged_of_one(small_store, tmp_path):
    """An agreement of 0% with a teacher that was not read would be a lie."""
    trainer = tiny_trainer(small_store, tmp_path, alpha=0.0)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["cross_entropy"], rel=1e-4)
        assert entry["num_rows"] > 0
        assert not entry.keys() & {"distillation", "teacher_mass", "student_mass", "top1_agreement"}


def test_lora_trains_the_adapters_alone(small_store, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_student()
    frozen = weights(base).clone()
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainer = tiny_trainer(
        small_store, tmp_path, model=model, max_steps=36, optim="adamw_torch", learning_rate=0.1
    )
    trainer.train()
    history = losses(trainer)
    assert sum(history[-3:]) < sum(history[:3])
    merged = model.merge_and_unload()
    assert not torch.allclose(weights(merged), frozen, atol=1e-4)
    assert torch.equal(merged.lm_head.weight, tiny_student().lm_head.weight)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "adapted", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_an_adapted_output_head_is_trained_unfused_and_refused_fused(small_store, tmp_path, adapted):
    peft = pytest.importorskip("peft")
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **adapted}

    def make(fused):
        model = peft.get_peft_model(tiny_student(), peft.LoraConfig(**settings))
        return tiny_trainer(
            small_store,
            tmp_path,
            model=model,
            fused=fused,
            max_steps=20,
            optim="adamw_torch",
            learning_rate=0.05,
        )

    with pytest.raises(UnsupportedHeadError, match=r"loss\.fused=false"):
        make(True)
    trainer = make(False)
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    after = trainer.evaluate()["eval_kl"]
    assert after < 0.8 * before
    model: Any = trainer.model
    merged = model.merge_and_unload()
    assert not torch.allclose(merged.lm_head.weight, tiny_student().lm_head.weight, atol=1e-3)
    plain = tiny_trainer(small_store, tmp_path, model=merged)
    assert plain.evaluate()["eval_kl"] == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_stock_trainer_with_compute_loss_func_equals_ours(small_store, tmp_path, alpha):
    model, settings = tiny_student(), LossSettings(alpha=alpha)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=5,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
    )
    reader = StreamingLogitDataset(small_store, batch_size=2, num_splits=3, seed=1, held_out=HeldOut(0.2))
    Trainer(
        model=model,
        args=args,
        train_dataset=reader,
        data_collator=DistillationCollator(CollateSettings(with_teacher=alpha > 0)),
        compute_loss_func=make_compute_loss_func(model, settings),
    ).train()
    _, expected = by_hand(small_store, num_steps=5, batch_size=2, accumulation=2, settings=settings)
    assert torch.allclose(weights(model), expected, atol=1e-5)


@pytest.mark.slow
def test_every_training_begins_where_the_first_one_does(small_store, tmp_path):
    """The second one went on in the middle of the epoch, and a look at a batch left it out of training."""
    trainer = tiny_trainer(small_store, tmp_path, trainer={"model_init": lambda: tiny_student(seed=4)})
    next(iter(trainer.get_train_dataloader()))
    trainer.train()
    first = weights(trainer.model).clone()
    trainer.train()
    assert torch.equal(weights(trainer.model), first)
    plain = tiny_trainer(small_store, tmp_path, model=tiny_student(seed=4))
    plain.train()
    assert torch.allclose(weights(plain.model), first, atol=1e-6)

    later = tiny_trainer(small_store, tmp_path, model=tiny_student(seed=4))
    later.logit_dataset.load_state_dict(plain.logit_dataset.state_dict())
    later.train()
    assert later.state.epoch == 2 * plain.state.epoch


def test_what_is_changed_after_construction_and_would_be_ignored_is_refused(small_store, tmp_path):
    """So do searches for the best arguments: every trial had the first loss and batch size."""
    for name, value, words in (
        ("alpha", 1.0, "alpha=1.0.*a Trainer for each loss"),
        ("per_device_train_batch_size", 8, "batch_size=4; make a dataset and a Trainer for each"),
        ("label_smoothing_factor", 0.1, "label_smoothing_factor=0.1: the loss has no label smoothing"),
    ):
        trainer = tiny_trainer(small_store, tmp_path)
        setattr(trainer.args, name, value)
        with pytest.raises(ValueError, match=words):
            trainer.train()


def test_what_does_not_fit_the_arguments_is_refused(small_store, tmp_path):
    with pytest.raises(ValueError, match="per_device_train_batch_size=4"):
        tiny_trainer(small_store, tmp_path, dataset={"batch_size": 2})
    with pytest.raises(ReshardingError, match="divided among 2 processes, but 1 train"):
        tiny_trainer(small_store, tmp_path, dataset={"rank": 0, "world_size": 2})
    with pytest.raises(ValueError, match=r"tail='zero' with beta=1"):
        tiny_trainer(small_store, tmp_path, tail="zero", beta=1.0)
    with pytest.raises(ValueError, match=r"per_device_eval_batch_size=2; give both the same"):
        tiny_trainer(small_store, tmp_path, per_device_eval_batch_size=2)


def test_one_process_with_several_gpus_is_refused(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr(OfflineDistillationConfig, "n_gpu", 2)
    with pytest.raises(ReshardingError, match="torchrun --nproc-per-node 2"):
        tiny_trainer(small_store, tmp_path)
