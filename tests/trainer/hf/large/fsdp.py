"""One of the processes of test_fsdp.py: trains students that accelerate shards by FSDP2.

accelerate makes plain data parallelism of FSDP on a CPU. Told that its processes have GPUs, it shards as it
does there; the rest is the same code on gloo.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

from tests.trainer.students import tiny_student, tiny_trainer
from trainer.errors import GuardError
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.student import merge_adapters

SETTINGS: dict[str, Any] = {
    "batch_size": 2, "max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0,
}  # fmt: skip
FSDP: dict[str, Any] = {"fsdp": True, "fsdp_config": {}, "ddp_backend": "gloo"}


IN_PARTS: dict[str, Any] = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


_post_init = OfflineDistillationConfig.__post_init__


def _and_as_if_on_gpus(self: OfflineDistillationConfig) -> None:
    """The next Accelerator looks only at this; transformers' arguments set it anew."""
    _post_init(self)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def shard_without_gpus() -> None:
    """For the arguments that are constructed from now on."""
    OfflineDistillationConfig.__post_init__ = _and_as_if_on_gpus  # type: ignore[method-assign]


def sharded(store: Path, folder: Path, *, model: Any = None, **settings: Any) -> Any:
    shard_without_gpus()
    try:
        return tiny_trainer(store, folder, model=model, **SETTINGS, **{**FSDP, **settings})
    finally:
        OfflineDistillationConfig.__post_init__ = _post_init  # type: ignore[method-assign]


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(tiny_student(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))  # type: ignore[arg-type]


def other(model: Any) -> Any:
    """The same student with other weights to train, of which nothing may be left when it is resumed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return model


def scenario(store: Path, folder: Path, make: Any, **settings: Any) -> dict[str, Any]:
    trainer = sharded(store, folder, model=make(), save_strategy="steps", save_steps=3, **settings)
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    seen = {"type": type(trainer.model_wrapped).__name__, "losses": losses(trainer), "before": before}
    seen |= {"after": trainer.evaluate()["eval_kl"]}
    again = sharded(store, folder / "again", model=other(make()), **settings)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {**seen, "resumed": losses(again), "resumed_after": again.evaluate()["eval_kl"]}


def merged(store: Path, folder: Path) -> str:
    """As `penumbra train run` ends with student.lora.merge."""
    trainer = sharded(store, folder, model=adapted())
    trainer.train()
    merge_adapters(trainer)
    trainer.save_model(str(folder / "saved"))
    return type(trainer.model).__name__


def refusal(construct: Callable[[], Any]) -> str:
    try:
        construct()
    except (ValueError, GuardError) as error:
        return str(error)
    return "silent"


def tensor_parallel(store: Path, folder: Path) -> Any:
    tiny_student().save_pretrained(folder)  # which the first process alone does
    torch.distributed.barrier()
    config = DistributedConfig(tp_size=2, tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)
    assert isinstance(model.lm_head.weight, DTensor)
    return tiny_trainer(store, folder, model=model, **SETTINGS)


def main() -> None:
    warnings.filterwarnings("ignore")
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    refused = refusal(lambda: tiny_trainer(store, folder / "refused", **SETTINGS, **FSDP))
    seen = {
        "fused": scenario(store, folder / "fused", tiny_student),
        "dense": scenario(store, folder / "dense", tiny_student, fused=False),
        "lora": scenario(store, folder / "lora", adapted),
        "in parts": scenario(store, folder / "in parts", tiny_student, **IN_PARTS),
        "lora in parts": scenario(store, folder / "lora in parts", adapted, **IN_PARTS),
        "merged": merged(store, folder / "merged"),
        "refused": refused,
        "tensor parallel": refusal(lambda: tensor_parallel(store, folder / "tp")),
    }
    Path(folder, f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
