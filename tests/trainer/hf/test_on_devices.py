"""Whole training steps as users of GPUs make them: in bf16, with checkpoints, compiled, packed."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.devices import DEVICES, no_gpu
from tests.trainer.stores import label_spec, labeled_sequence
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.samples import Sample
from trainer.hf.checks.packing_check import choose_packed_attention
from trainer.hf.heads import batch_loss
from trainer.loss.loss_settings import LossSettings

STEPS = 4


def given_samples() -> list[Sample]:
    rng, spec = np.random.default_rng(4), label_spec()
    return [
        Sample(labeled_sequence(rng, f"r{index}", spec, length, 3), spec)
        for index, length in enumerate((20, 13, 31, 9, 17))
    ]


def trained(store: Path, folder: Path, device: str, **arguments: Any) -> tuple[list[float], Any]:
    """Losses of some steps and the student after them."""
    trainer: Any = tiny_trainer(
        store, folder, model=tiny_student(), use_cpu=device == "cpu", max_steps=STEPS, **arguments
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert next(trainer.model.parameters()).device.type == device
    return losses, weights(trainer.model).float().cpu()


@cache
def trained_plainly(store: Path, folder: Path, device: str) -> tuple[list[float], Any]:
    return trained(store, folder, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"bf16": True}, 2e-2),
        ({"bf16": True, "gradient_checkpointing": True}, 2e-2),
        pytest.param({"torch_compile": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_the_ways_to_train_on_a_gpu_train_alike(
    small_store: Path, tmp_path: Path, device: str, way: dict[str, Any], tolerance: float
) -> None:
    if device == "cpu" and "torch_compile" in way:
        # A C++ compiler is no part of what a CPU machine needs; the graph is traced all the same.
        way = way | {"torch_compile_backend": "eager"}
    plain, plain_weights = trained_plainly(small_store, small_store.parent / f"plain-{device}", device)
    losses, found_weights = trained(small_store, tmp_path / "way", device, **way)
    assert losses == pytest.approx(plain, rel=tolerance)
    before = weights(tiny_student())
    moved = (plain_weights - before).norm()
    assert moved > 0
    assert (found_weights - plain_weights).norm() < max(3 * tolerance, 1e-4) * moved


@pytest.mark.parametrize(
    ("device", "attention", "dtype", "tolerance"),
    [
        ("cpu", "sdpa", torch.float32, 2e-5),
        pytest.param("cuda", "sdpa", torch.float32, 1e-4, marks=[pytest.mark.gpu, no_gpu]),
        pytest.param(
            "cuda",
            "flash_attention_2",
            torch.bfloat16,
            2e-2,
            marks=[
                pytest.mark.gpu,
                no_gpu,
                pytest.mark.skipif(
                    importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed"
                ),
            ],
        ),
    ],
)
def test_packed_documents_are_those_apart(
    device: str, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model: Any = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    model, samples = model.to(device, dtype).eval(), given_samples()

    def loss(**settings: Any) -> float:
        batch = DistillationCollator(CollateSettings(**settings))(samples)
        with torch.no_grad():
            return batch_loss(
                model, {name: value.to(device) for name, value in batch.items()}, LossSettings()
            ).loss.item()

    way = choose_packed_attention(model, pack_length=48)
    assert loss(pack_length=48, packed_attention=way) == pytest.approx(loss(), rel=tolerance)
    # Without any separation the loss is another, so that the comparison tests something.
    batch = DistillationCollator(CollateSettings(pack_length=48, packed_attention=way))(samples)
    del batch["position_ids"]
    batch.pop("attention_mask", None)
    with torch.no_grad():
        mixed = batch_loss(
            model, {name: value.to(device) for name, value in batch.items()}, LossSettings()
        ).loss.item()
    assert mixed != pytest.approx(loss(), rel=tolerance)


def flash_attention_of_tests(module, query, key, value, attention_mask, **given):
    """SDPA that takes what FlashAttention takes, by transformers' own choice of a precision."""
    dtype = get_target_dtype(query, module) or query.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    given["is_causal"] = True
    query, key, value = (part.to(dtype) for part in (query, key, value))
    return sdpa_attention_forward(module, query, key, value, None, **given)


def test_flash_attention_trains_float32_weights_in_mixed_precision(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash_attention_of_tests
    )
    student = tiny_student()
    student.config._attn_implementation = "flash_attention_2"
    trainer: Any = tiny_trainer(small_store, tmp_path, model=student, bf16=True, max_steps=1)
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert 0 < trainer.evaluate()["eval_kl"] < before


def test_a_student_is_judged_in_one_precision_before_and_after_training(
    small_store: Path, tmp_path: Path
) -> None:
    trainer: Any = tiny_trainer(small_store, tmp_path, bf16=True, learning_rate=0.0, max_steps=1)
    before = trainer.evaluate_student()
    trainer.train()
    assert trainer.evaluate_student() == before, "weights that did not change have one KL"
