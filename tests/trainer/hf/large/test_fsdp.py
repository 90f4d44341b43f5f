"""FSDP2 through accelerate, on two real processes: it trains, saves and resumes as one process does."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trainer.hf.large.fsdp import SETTINGS, adapted, losses
from tests.trainer.hf.large.processes import run_processes
from tests.trainer.students import tiny_student, tiny_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MADE = {"fused": tiny_student, "dense": tiny_student, "lora": adapted}
IN_PARTS = {"in parts": "fused", "lora in parts": "lora"}
"""Those whose checkpoints are in parts, by the name of the same training with whole ones."""


@pytest.fixture(scope="module")
def seen(small_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    ranks, _ = run_processes(
        "tests.trainer.hf.large.fsdp",
        str(small_store),
        folder=folder,
        environment={"ACCELERATE_USE_CPU": "true"},
    )
    return ranks, folder


@pytest.fixture(scope="module")
def alone(small_store, tmp_path_factory):
    """The same trainings in this one process, each of the batch of both."""

    def train(name):
        trainer = tiny_trainer(
            small_store,
            tmp_path_factory.mktemp("alone"),
            model=MADE[name](),
            **{**SETTINGS, "batch_size": 4, "fused": name != "dense"},
        )
        before = trainer.evaluate()["eval_kl"]
        trainer.train()
        return trainer, before, trainer.evaluate()["eval_kl"]

    return {name: train(name) for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_a_sharded_student_trains_and_is_evaluated_as_in_one_process(name, seen, alone):
    trainer, before, after = alone[name]
    for rank in seen[0]:
        assert rank[name]["type"].startswith("FSDP")
        assert rank[name]["before"] == pytest.approx(before, rel=1e-4)
        assert rank[name]["after"] == pytest.approx(after, rel=1e-3)
    assert seen[0][0][name]["losses"] == pytest.approx(losses(trainer), rel=1e-3)


@pytest.mark.parametrize("name", [*MADE, *IN_PARTS])
def test_a_sharded_student_is_resumed(name, seen):
    for rank in seen[0]:
        assert rank[name]["resumed"][-3:] == pytest.approx(rank[name]["losses"][-3:], rel=1e-5)
        assert rank[name]["resumed_after"] == pytest.approx(rank[name]["after"], rel=1e-5)


@pytest.mark.parametrize("name", ["fused", "dense"])
def test_a_sharded_student_is_saved_whole(name, seen, alone):
    saved = AutoModelForCausalLM.from_pretrained(seen[1] / name / "saved").state_dict()
    for key, value in alone[name][0].model.state_dict().items():
        assert torch.allclose(saved[key], value, atol=1e-3), key


def test_adapters_of_a_sharded_student_are_saved_whole(seen, alone):
    saved = load_file(seen[1] / "lora" / "saved" / "adapter_model.safetensors")
    expected = alone["lora"][0].model.state_dict()
    assert saved
    for key, value in saved.items():
        whole = expected[key.replace(".weight", ".default.weight")]
        assert torch.allclose(value, whole, atol=1e-3), key


@pytest.mark.parametrize(("name", "whole"), IN_PARTS.items())
def test_checkpoints_in_parts_leave_a_whole_student_at_the_end(name, whole, seen):
    """transformers saved none, and said nothing."""
    ranks, folder = seen
    assert ranks[0][name]["losses"] == ranks[0][whole]["losses"]
    assert (folder / name / "checkpoint-3" / "pytorch_model_fsdp_0").is_dir()
    file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    saved, expected = (load_file(folder / one / "saved" / file) for one in (name, whole))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in saved.items())


def test_adapters_of_a_sharded_student_are_merged(seen, alone):
    ranks, folder = seen
    assert ranks[0]["merged"] == "LlamaForCausalLM"
    saved = load_file(folder / "merged" / "saved" / "model.safetensors")
    expected = copy.deepcopy(alone["lora"][0].model).merge_and_unload().state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.allclose(value, expected[key], atol=1e-3) for key, value in saved.items())
    assert not torch.equal(
        saved["model.layers.0.mlp.down_proj.weight"],
        adapted().get_base_model().state_dict()["model.layers.0.mlp.down_proj.base_layer.weight"],
    )


def test_fsdp_that_accelerate_would_not_do_is_refused(seen):
    """On a CPU it makes data parallelism of it, every process with a whole student."""
    for rank in seen[0]:
        assert "fsdp was asked for" in rank["refused"]


def test_a_student_loaded_with_tensor_parallelism_is_refused_by_name(seen):
    for rank in seen[0]:
        assert "tensor parallelism over 2 processes" in rank["tensor parallel"]
