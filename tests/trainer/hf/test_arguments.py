"""Every argument of transformers' Trainer is honoured or refused by name, and its other ways in are there."""

import json
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.training_args import OptimizerNames

from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.errors import GuardError, SettingError
from trainer.hf.arguments import (
    HONOURED,
    LOSS_FIELDS,
    OF_SCRIPTS,
    REFUSED,
    SET,
    OfflineDistillationConfig,
)
from trainer.hf.checks.optimizer import check_optimizer
from trainer.run.config import TrainingConfig

CHANGED = {
    "label_smoothing_factor": 0.3,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "data_seed": 3,
    "dataloader_drop_last": True,
    "dataloader_persistent_workers": True,
    "dataloader_in_order": False,
    "auto_find_batch_size": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "use_cache": True,
    "label_names": ["other"],
    "prediction_loss_only": True,
}
"""A value of each refused argument that would change something."""


def test_every_argument_has_one_place():
    names = [item.name for item in fields(TrainingArguments)]
    tables = [*HONOURED, *SET, *OF_SCRIPTS, *REFUSED]
    assert sorted(tables) == sorted(names), "transformers has other arguments now; place each in a table"


def test_every_setting_of_the_loss_is_an_argument():
    assert set(LOSS_FIELDS) <= {item.name for item in fields(OfflineDistillationConfig)}
    config = OfflineDistillationConfig(temperature=2.0, alpha=0.25, tail="renormalize")
    assert (config.loss_settings().temperature, config.loss_settings().alpha) == (2.0, 0.25)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_ignored_is_refused_by_name(name):
    if name == "parallelism_config":
        assert not REFUSED[name].allows(object())
        return
    workers = {"dataloader_num_workers": 1} if name.startswith("dataloader") else {}
    with pytest.raises(ValueError, match=f"^{name}="):
        OfflineDistillationConfig(use_cpu=True, **{name: CHANGED[name], **workers})


def test_what_would_save_no_student_or_has_no_package_is_refused(monkeypatch):
    """Liger failed once training began."""
    for kind in ("LOCAL_STATE_DICT", "SHARDED"):
        with pytest.raises(ValueError, match=f"state_dict_type='{kind}', in which FSDP2 saves nothing"):
            OfflineDistillationConfig(use_cpu=True, fsdp="full_shard", fsdp_config={"state_dict_type": kind})
    monkeypatch.setattr("trainer.hf.arguments.is_liger_kernel_available", lambda: False)
    with pytest.raises(ValueError, match="use_liger_kernel=True needs the package liger-kernel"):
        OfflineDistillationConfig(use_cpu=True, use_liger_kernel=True)


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches", "non_blocking"])
def test_accelerates_ways_of_dividing_are_refused(name):
    with pytest.raises(ValueError, match=f"accelerator_config has {name}"):
        OfflineDistillationConfig(accelerator_config={name: True})


def test_zero_3_is_refused_by_name_wherever_it_is_asked_for(tmp_path, monkeypatch):
    settings = {"zero_optimization": {"stage": 3}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    for given in (settings, str(tmp_path / "ds.json")):
        with pytest.raises(ValueError, match="ZeRO stage 3 is not supported"):
            OfflineDistillationConfig(deepspeed=given)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match=r"Use stage 2, or FSDP"):
        OfflineDistillationConfig()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optim_args": "amsgrad=True"}, "adamw_torch_fused does not read amsgrad"),
        ({"optim_args": "foo=3", "optim": "rmsprop"}, "rmsprop does not read foo"),
        ({"optim_args": "foo"}, "is not of the form 'name=value"),
        ({"optim_args": "momentum=fast", "optim": "sgd"}, "optim_args='momentum=fast'.*cannot be made"),
        ({"optim": "schedule_free_adamw"}, "optim='schedule_free_adamw'.*cannot be made.*schedulefree"),
        ({"optim_target_modules": ["q_proj"]}, "is read by GaLore and APOLLO alone"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "training.schedule_args.*num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "'cosine_with_min_lr' with.*min_lr"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"bogus": 1}}, "'linear' with.*bogus"),
        ({"warmup_steps": 3}, "reads neither .* nor warmup_steps=3; leave.*'constant_with_warmup'"),
    ],
)
def test_what_no_optimizer_or_schedule_reads_is_refused(small_store, tmp_path, given, words):
    """Unknown arguments of optimizers changed nothing; the others ended in a traceback after the evaluation."""
    with pytest.raises(SettingError, match=words):
        tiny_trainer(small_store, tmp_path, **{"optim": "adamw_torch_fused", **given})


@pytest.mark.parametrize(
    "given",
    [
        {"optim": "sgd", "optim_args": "momentum=0.5,nesterov=True"},
        {"optim": "sgd", "optim_args": "momentum=0"},
        {"optim": "rmsprop", "optim_args": "alpha = 0.9, centered=true"},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"warmup_steps": 0.5, "lr_scheduler_type": "linear"},
    ],
)
def test_what_they_read_is_taken(small_store, tmp_path, given):
    tiny_trainer(small_store, tmp_path, **given)


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_every_optimizer_can_be_or_is_refused_by_name(name):
    """Those whose packages are not installed ended in a traceback."""
    args = OfflineDistillationConfig(optim=name, use_cpu=True)
    if name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"):
        check_optimizer(args, tiny_student())
    elif name.startswith(("galore", "apollo", "lomo", "adalomo", "grok", "schedule_free")):
        with pytest.raises(SettingError, match=f"optim='{name}'.*cannot be made"):
            check_optimizer(args, tiny_student())


def test_an_optimizer_that_there_is_not_is_named():
    with pytest.raises(
        ValueError, match=r"optim='muon'.*not an optimizer of transformers; it has adamw_torch"
    ):
        OfflineDistillationConfig(optim="muon")
    told = str(TrainingConfig.model_fields["optimizer"].description).partition(":")[2]
    for name in re.findall(r"[a-z_0-9]+(?=,)", told):
        OfflineDistillationConfig(optim=name)


def test_half_precision_that_a_cpu_lacks_is_refused():
    with pytest.raises(ValueError, match=r"fp16=True.*would train in float32 on a CPU"):
        OfflineDistillationConfig(fp16=True, use_cpu=True)
    OfflineDistillationConfig(bf16=True, use_cpu=True)


def held_out(store, **settings):
    common = {"batch_size": 4, "num_splits": 3, "seed": 1, **settings}
    return StreamingLogitDataset(store, held_out=HeldOut(0.2, "held_out"), **common)


def test_one_object_for_training_and_evaluation_is_refused(small_store, tmp_path):
    trainer = tiny_trainer(small_store, tmp_path)
    one = trainer.logit_dataset
    for given in (one, {"a": held_out(small_store), "b": one}):
        with pytest.raises(ValueError, match="would move the place where training reads"):
            tiny_trainer(small_store, tmp_path, train_dataset=one, eval_dataset=given)
    with pytest.raises(ValueError, match="would move the place"):
        trainer.evaluate(one)
    with pytest.raises(TypeError, match="eval_dataset b is a list, which has no teacher's labels"):
        tiny_trainer(small_store, tmp_path, eval_dataset={"b": [1]})


@pytest.mark.slow
def test_several_evaluation_sets_have_figures_of_their_own(small_store, tmp_path):
    sets = {"few": held_out(small_store), "rest": StreamingLogitDataset(small_store, batch_size=4)}
    trainer = tiny_trainer(
        small_store,
        tmp_path,
        eval_dataset=sets,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_few_kl",
    )
    trainer.train()
    found = trainer.evaluate()
    for name, dataset in sets.items():
        assert found[f"eval_{name}_kl"] == pytest.approx(trainer.evaluate_student(dataset).kl)
    assert found["eval_few_num_rows"] < found["eval_rest_num_rows"]
    logged = [entry["eval_few_kl"] for entry in trainer.state.log_history if "eval_few_kl" in entry]
    assert trainer.state.best_metric == min(logged[:2])


@pytest.mark.slow
def test_optimizers_schedules_and_peft_are_taken(small_store, tmp_path):
    model = tiny_student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    given = tiny_trainer(small_store, tmp_path, model=model, trainer={"optimizers": (optimizer, schedule)})
    given.train()
    rates = [entry["learning_rate"] for entry in given.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.5 * 0.5**step for step in range(6)])
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = tiny_trainer(small_store, tmp_path, trainer={"peft_config": adapters})
    assert sum(p.numel() for p in adapted.model.parameters() if p.requires_grad) < 2000


@pytest.mark.slow
def test_a_student_may_be_named_or_made(small_store, tmp_path):
    tiny_student(seed=4).save_pretrained(tmp_path / "student")
    named = tiny_trainer(small_store, tmp_path, model=str(tmp_path / "student"))
    made = tiny_trainer(small_store, tmp_path, trainer={"model_init": lambda: tiny_student(seed=4)})
    for trainer in (named, made):
        trainer.train()
    assert torch.allclose(weights(named.model), weights(made.model), atol=1e-6)
    plain = tiny_trainer(small_store, tmp_path, model=tiny_student(seed=4), fused=False)
    plain.train()
    assert torch.allclose(weights(plain.model), weights(made.model), atol=1e-5)


@pytest.mark.slow
def test_predictions_and_metrics_of_ones_own_see_logits_and_labels(small_store, tmp_path):
    def top1(prediction):
        labels = prediction.label_ids[:, 1:]
        right = prediction.predictions.argmax(-1)[:, :-1] == labels
        return {"own_accuracy": float(right[labels != -100].mean())}

    trainer = tiny_trainer(small_store, tmp_path, trainer={"compute_metrics": top1}, max_steps=20)
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_own_accuracy"] == pytest.approx(found["eval_accuracy"])
    assert found["eval_loss"] == found["eval_kl"]
    predicted: Any = trainer.predict(held_out(small_store))
    assert predicted.predictions.shape[2] == 64
    assert predicted.label_ids.shape == predicted.predictions.shape[:2]
    assert predicted.metrics["test_kl"] == pytest.approx(found["eval_kl"], rel=1e-5)
    assert predicted.metrics["test_loss"] == predicted.metrics["test_kl"]
    assert np.isfinite(predicted.predictions).all()


def mixture(coef: float, wanted: bool = True) -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            output_router_logits=wanted,
            router_aux_loss_coef=coef,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_the_load_balancing_loss_of_a_mixture_of_experts_is_trained_on(small_store, tmp_path, fused):
    def router_gradient(coef: float, wanted: bool = True) -> torch.Tensor:
        trainer = tiny_trainer(small_store, tmp_path, model=mixture(coef, wanted), fused=fused, max_steps=1)
        before = weights(trainer.model).clone()
        trainer.train()
        return (before - weights(trainer.model)) / 0.5

    none, some, more = (router_gradient(coef) for coef in (0.0, 1.0, 2.0))
    off = router_gradient(9.0, wanted=False)
    assert torch.allclose(none, off, atol=1e-6)
    assert (some - none).abs().max() > 1e-4
    assert torch.allclose(more - none, 2 * (some - none), atol=2e-5)

    model = mixture(1.0)
    reader = tiny_trainer(small_store, tmp_path, model=mixture(0.0)).get_train_dataloader()
    batch = next(iter(reader))
    keys = ("input_ids", "attention_mask", "position_ids")
    logits = model(**{key: batch[key] for key in keys}, use_cache=False).router_logits
    balance: Any = load_balancing_loss_func(logits, 4, model.num_experts_per_tok, batch["attention_mask"])
    balance.backward()
    expected = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
    names = [name for name, _ in model.named_parameters()]
    order = [name for name in model.state_dict() if name in names]
    assert names == order
    assert torch.allclose(some - none, expected, atol=2e-5)


@pytest.mark.slow
def test_a_router_loss_without_a_weight_is_refused(small_store, tmp_path):
    model = tiny_student()
    model.config.output_router_logits = True
    with pytest.raises(GuardError, match="no router_aux_loss_coef"):
        tiny_trainer(small_store, tmp_path, model=model)


def test_a_router_loss_that_the_student_does_not_compute_is_refused(small_store, tmp_path):
    """Of AFMoE, GLM-4 and others there is the setting alone; the first step ended in an AttributeError."""
    model = tiny_student()
    model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.1
    with pytest.raises(GuardError, match="its output has no load-balancing loss"):
        tiny_trainer(small_store, tmp_path, model=model)
