"""One of the processes of test_two_processes.py: runs every scenario, prints what it saw as JSON.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python -m tests.trainer.hf.two_processes STORE FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader

from tests.trainer.loss.reference_loss import make_case
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer.batch.collate_settings import TEACHER_KEYS
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.errors import ReshardingError
from trainer.hf.heads import batch_loss, find_head
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss
from trainer.run.watch.sigterm import StoppedError
from trainer.run.watch.stopping import SavingStop


def record_numbers(samples: Any) -> dict[str, torch.Tensor]:
    return {"record": torch.tensor([int(sample.sequence.record_id[1:]) for sample in samples])}


def dataset(store: str, **settings: Any) -> StreamingLogitDataset:
    return StreamingLogitDataset(store, **{"batch_size": 3, "num_splits": 3, "seed": 1, **settings})


def accelerate_scenarios(store: str) -> dict[str, Any]:
    """What accelerate makes of a loader over a dataset that is divided already, and over one that is not."""
    seen: dict[str, Any] = {}
    for name, options, num_workers in (
        ("shard", {"dispatch_batches": False}, 0),
        ("split", {"dispatch_batches": False, "split_batches": True}, 0),
        ("dispatch", {"dispatch_batches": True}, 0),
        ("dispatch, worker", {"dispatch_batches": True}, 1),
    ):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        plain = DataLoader(
            dataset(store, batch_size=4), 4, collate_fn=record_numbers, num_workers=num_workers
        )
        prepared: Any = accelerator.prepare(plain)
        try:
            next(iter(prepared))
            seen[name] = "silent"
        except ReshardingError as error:
            seen[name] = str(error)
        accelerator.wait_for_everyone()
    accelerator = Accelerator(cpu=True)
    ours: Any = accelerator.prepare(LogitDataLoader(dataset(store), record_numbers))
    seen["ours"] = [batch["record"].tolist() for batch in ours]
    whole = DataLoader(dataset(store, rank=0, world_size=1), batch_size=3, collate_fn=record_numbers)
    undivided: Any = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False)
    ).prepare(whole)
    seen["undivided"] = [batch["record"].tolist() for batch in undivided]
    return seen


def trainer_scenarios(store: str, folder: Path) -> dict[str, Any]:
    common: dict[str, Any] = {"max_steps": 9, "ddp_backend": "gloo"}
    trainer = tiny_trainer(
        Path(store), folder / "whole", batch_size=2, save_strategy="steps", save_steps=5, **common
    )
    evaluation = trainer.evaluate()
    trainer.train()
    accumulated = tiny_trainer(
        Path(store), folder / "acc", batch_size=1, gradient_accumulation_steps=2, **common
    )
    accumulated.train()
    try:
        tiny_trainer(Path(store), folder / "uneven", even=False, **common)
        uneven = "silent"
    except ValueError as error:
        uneven = str(error)
    dropping = {"model": tiny_student(dropout=0.3), "batch_size": 2, **common}
    dropped = tiny_trainer(Path(store), folder / "drop", save_strategy="steps", save_steps=5, **dropping)
    dropped.train()
    resumed = tiny_trainer(
        Path(store), folder / "again", **{**dropping, "model": tiny_student(dropout=0.3, seed=3)}
    )
    resumed.train(resume_from_checkpoint=str(folder / "drop" / "checkpoint-5"))
    asked = threading.Event()
    stopping = tiny_trainer(Path(store), folder / "stop", batch_size=2, **common)
    stopping.callback_handler.callbacks.insert(0, SavingStop(asked))
    rank = torch.distributed.get_rank()
    if rank:  # as where one node alone is taken away
        asked.set()
    try:
        stopping.train()
        stopped = "silent"
    except StoppedError as error:
        stopped = str(error)
    apart = tiny_trainer(Path(store), folder / "apart", batch_size=2, **common)
    try:
        apart.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-5") if rank else None)
        places = "silent"
    except ReshardingError as error:
        places = str(error)
    return {
        "places": places,
        "stopped": stopped,
        "uneven": uneven,
        "dropped": weights(dropped.model).tolist(),
        "resumed": weights(resumed.model).tolist(),
        "weights": weights(trainer.model).tolist(),
        "accumulated": weights(accumulated.model).tolist(),
        "history": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "kl": evaluation["eval_kl"],
        "num_rows": evaluation["eval_num_rows"],
        "num_sequences": evaluation["eval_num_sequences"],
    }


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor / torch.distributed.get_world_size()


def relative_error(found: Any, expected: torch.Tensor) -> float:
    return ((found.full_tensor() - expected).abs().max() / expected.abs().max()).item()


def sharded_scenarios() -> dict[str, Any]:
    """Gradients of the fused loss where weights are sharded, each process with other data."""
    mesh = init_device_mesh("cpu", (2,))
    rank = torch.distributed.get_rank()
    case = make_case(3 + rank, vocab_size=64, dtype=torch.float32)
    model = tiny_student()
    hidden = torch.randn(*case.labels.shape, 16, generator=torch.Generator().manual_seed(rank))
    arguments = (case.labels, case.targets, LossSettings())
    weight = model.lm_head.weight
    dense = topk_distillation_loss(hidden @ weight.t(), *arguments)
    expected = mean_over_processes(torch.autograd.grad(dense.loss, weight)[0])
    sharded = torch.nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)]))
    fused_linear_topk_distillation_loss(hidden, sharded, *arguments).loss.backward()
    errors = {"weight": relative_error(sharded.grad, expected)}

    batch = {"input_ids": case.labels.clamp(min=0), "labels": case.labels}
    batch |= dict(zip(TEACHER_KEYS, dataclasses.astuple(case.targets), strict=True))
    names, parameters = zip(*model.named_parameters(), strict=True)
    own = torch.autograd.grad(batch_loss(model, batch, LossSettings()).loss, parameters)
    gradients = dict(zip(names, map(mean_over_processes, own), strict=True))
    for name in ("root", "head"):
        model = tiny_student()
        head = find_head(model)
        for part in [*model.model.layers, *([model.lm_head] if name == "head" else [])]:
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=name == "head")
        batch_loss(model, batch, LossSettings(), head=head).loss.backward()
        errors[name] = max(
            relative_error(value.grad, gradients[key]) for key, value in model.named_parameters()
        )
    return {"sharded": errors}


def main() -> None:
    warnings.filterwarnings("ignore")
    store, folder = sys.argv[1], Path(sys.argv[2])
    topology = dataset(store).topology  # before torch.distributed runs: from the launcher's variables
    seen: dict[str, Any] = {"launched": [topology.rank, topology.world_size]}
    seen |= accelerate_scenarios(store) | trainer_scenarios(store, folder) | sharded_scenarios()
    Path(folder, f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
