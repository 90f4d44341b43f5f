"""One of the processes of test_deepspeed.py: trains students by DeepSpeed, on gloo.

Called with a store, a student and the folder for what it leaves.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.trainer.hf.large.fsdp import SETTINGS, losses, other
from tests.trainer.students import tiny_trainer
from trainer.hf.arguments import OfflineDistillationConfig

deepspeed: Any = importlib.import_module("deepspeed")  # in a folder of its own, which pyright does not know


def settings(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_force_ds_cpu_optimizer": False,
    }


def arguments(folder: Path, stage: int) -> OfflineDistillationConfig:
    return OfflineDistillationConfig(
        output_dir=str(folder),
        per_device_train_batch_size=SETTINGS["batch_size"],
        use_cpu=True,
        ddp_backend="gloo",
        deepspeed=settings(stage),
    )


def scenario(store: Path, folder: Path, student: str, *, fused: bool, model_first: bool) -> dict[str, Any]:
    def trainer(where: Path, change: Callable[[Any], Any] = lambda model: model) -> Any:
        if not model_first:
            arguments(where, 2)
        model = change(AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32))
        common: dict[str, Any] = {**SETTINGS, "fused": fused, "deepspeed": settings(2), "ddp_backend": "gloo"}
        return tiny_trainer(store, where, model=model, save_strategy="steps", save_steps=3, **common)

    first = trainer(folder)
    first.train()
    seen = {"type": type(first.model_wrapped).__name__, "losses": losses(first)}
    seen["after"] = first.evaluate()["eval_kl"]
    again = trainer(folder / "again", other)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {**seen, "resumed": losses(again)}


def refusal(folder: Path) -> str:
    try:
        arguments(folder, 3)
    except ValueError as error:
        return str(error)
    return "silent"


def without_compiling() -> None:
    """Its collective operations in shared memory would be compiled first; gloo has the same ones."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main() -> None:
    warnings.filterwarnings("ignore")
    store, student, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    without_compiling()
    seen = {
        "version": deepspeed.__version__,
        "refused": refusal(folder),
        "fused": scenario(store, folder / "fused", student, fused=True, model_first=False),
        "dense": scenario(store, folder / "dense", student, fused=False, model_first=True),
    }
    rank = int(os.environ["RANK"])
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # its threads would otherwise wait for each other


if __name__ == "__main__":
    main()
