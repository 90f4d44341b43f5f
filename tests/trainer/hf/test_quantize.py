"""Students whose weights are integers: rounding, learning their own labels back, and the model that loads again."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from tests.trainer.stores import label_rows, label_spec, manifest
from tests.trainer.students import tiny_student, tiny_trainer
from trainer.errors import SettingError
from trainer.hf.checks.disk import weight_bytes
from trainer.hf.quantize import (
    WeightQuantization,
    bytes_left_out,
    fake_quantize,
    fake_quantized,
    save_quantized,
    weight_scales,
)

INT8, INT4 = WeightQuantization(8), WeightQuantization(4, group_size=8)


@pytest.mark.parametrize("quantization", [INT8, INT4])
def test_weights_are_the_nearest_integers_and_the_gradient_passes(quantization):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = fake_quantized(weight, quantization)
    scale = weight_scales(weight, quantization).repeat_interleave(quantization.group_size or 16, dim=1)
    integers = rounded / scale
    assert torch.allclose(integers, integers.round(), atol=1e-4)
    assert integers.abs().max() <= 2 ** (quantization.bits - 1)
    assert ((rounded - weight).abs() <= scale / 2 + 1e-6).all()
    assert not torch.allclose(rounded, weight, atol=1e-5)
    (rounded * torch.arange(16.0)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.arange(16.0).expand(6, 16))


def sharp_student():
    """Weights large enough for rounding to matter."""
    model = tiny_student()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.dim() == 2 else 1)
    return model


@pytest.fixture(scope="module")
def own_labels(tmp_path_factory):
    """A store of the labels that the student itself gives at full precision."""
    spec, model, rng = label_spec(top_k=16), sharp_student(), np.random.default_rng(0)
    path = tmp_path_factory.mktemp("own") / "labels"
    store = LogitStore.create(str(path), manifest(spec))
    sequences = []
    for number in range(60):
        token_ids_T = rng.integers(0, 64, 24).astype(np.int32)
        with torch.no_grad():
            logits_TV = model(input_ids=torch.from_numpy(token_ids_T).long()[None]).logits[0].numpy()
        rows = label_rows(logits_TV[:-1], token_ids_T[1:], spec.top_k)
        sequences.append(
            LabeledSequence(f"r{number}", 0, token_ids_T, 0, 1, rows, np.ones(23, dtype=bool), "scored")
        )
    store.commit_unit("unit-0", 0, sequences, seconds=0.0, worker="test")
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not say which tokenizer")
@pytest.mark.parametrize("quantization", [INT8, INT4])
def test_a_student_learns_its_own_labels_back_and_loads_as_integers(own_labels, tmp_path, quantization):
    model = sharp_student()
    assert fake_quantize(model, quantization) == 7
    trainer = tiny_trainer(
        own_labels,
        tmp_path / "run",
        model=model,
        batch_size=30,
        alpha=1.0,
        optim="adamw_torch",
        # Of the rates tried the one whose end depends least on the processor's rounding.
        learning_rate=3e-4 if quantization.bits == 4 else 1e-5,
        lr_scheduler_type="linear",
        max_steps=100,
        max_grad_norm=1.0,
        logging_steps=100,
    )
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    after = trainer.evaluate()["eval_kl"]
    if quantization.bits == 4:
        assert after < 0.85 * before
    else:
        assert max(before, after) < 1e-3, "8 bits lose next to nothing"
    ids = torch.arange(40)[None] % 64
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        told = weight_bytes(model) - bytes_left_out(model, quantization)
        save_quantized(model, quantization, tmp_path / "saved")
        with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no dictionary
        assert told == sum(one.numel() * one.element_size() for one in tensors)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
        found = loaded(input_ids=ids).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert loaded.config.quantization_config is not None


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(SettingError, match="has 16 inputs, which is no multiple of group_size=12"):
        fake_quantize(tiny_student(), WeightQuantization(4, group_size=12))
    model = tiny_student()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(SettingError, match="has no linear layer besides its head"):
        fake_quantize(model, INT8)
