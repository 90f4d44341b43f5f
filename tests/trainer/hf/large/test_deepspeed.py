"""DeepSpeed's ZeRO on two real processes: stage 2 trains as one process does, stage 3 is refused by name.

DeepSpeed is installed in a folder of its own (tools/setup.sh): where it can be imported, accelerate does so
in every training.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainer.hf.large.fsdp import SETTINGS, losses
from tests.trainer.hf.large.processes import deepspeed_environment, run_processes
from tests.trainer.students import tiny_student, tiny_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen(small_store, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("deepspeed")
    tiny_student().save_pretrained(folder / "student")
    ranks, _ = run_processes(
        "tests.trainer.hf.large.zero",
        str(small_store),
        str(folder / "student"),
        folder=folder,
        environment=deepspeed_environment(),
    )
    return ranks, folder


@pytest.fixture(scope="module")
def alone(small_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    trainer = tiny_trainer(small_store, folder, **{**SETTINGS, "batch_size": 4})
    trainer.train()
    return trainer, trainer.evaluate()["eval_kl"]


@pytest.mark.parametrize("name", ["fused", "dense"])
def test_zero_2_trains_and_resumes_as_one_process(name, seen, alone):
    """Fused with the arguments made before the student, dense after it."""
    for rank in seen[0]:
        assert rank[name]["type"] == "DeepSpeedEngine"
        assert rank[name]["after"] == pytest.approx(alone[1], rel=1e-3)
        assert rank[name]["resumed"][-3:] == pytest.approx(rank[name]["losses"][-3:], rel=1e-5)
    assert seen[0][0][name]["losses"] == pytest.approx(losses(alone[0]), rel=1e-3)


def test_a_student_under_zero_2_is_saved_whole(seen, alone):
    saved = AutoModelForCausalLM.from_pretrained(seen[1] / "fused" / "checkpoint-6").state_dict()
    for key, value in alone[0].model.state_dict().items():
        assert torch.allclose(saved[key], value, atol=1e-3), key


def test_zero_3_is_refused_with_deepspeed_at_hand(seen):
    """Before DeepSpeed partitions a student, whichever is made first: the arguments are what it starts by."""
    for rank in seen[0]:
        assert "ZeRO stage 3 is not supported: it empties the weights" in rank["refused"]
