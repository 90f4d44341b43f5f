"""One of the processes of test_two_processes.py: runs every scenario, prints what it saw as JSON.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python -m tests.trainer.two_processes STORE FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

from tests.trainer.students import tiny_trainer, weights
from trainer.dataset import StreamingLogitDataset
from trainer.loader import LogitDataLoader
from trainer.topology import ReshardingError


def record_numbers(samples: Any) -> dict[str, torch.Tensor]:
    return {"record": torch.tensor([int(sample.sequence.record_id[1:]) for sample in samples])}


def dataset(store: str, **settings: Any) -> StreamingLogitDataset:
    return StreamingLogitDataset(store, batch_size=3, num_splits=3, seed=1, **settings)


def accelerate_scenarios(store: str) -> dict[str, Any]:
    """What accelerate makes of a loader over a dataset that is divided already, and over one that is not."""
    seen: dict[str, Any] = {}
    for name, dispatch in (("shard", False), ("dispatch", True)):
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch)
        )
        plain = DataLoader(dataset(store), batch_size=3, collate_fn=record_numbers)
        prepared: Any = accelerator.prepare(plain)
        try:
            # With dispatch the first process reads for all, so it alone can notice: it must not start.
            if accelerator.is_main_process or not dispatch:
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
    trainer = tiny_trainer(Path(store), folder / "whole", batch_size=2, max_steps=9, ddp_backend="gloo")
    evaluation = trainer.evaluate()
    trainer.train()
    halves = tiny_trainer(
        Path(store),
        folder / "half",
        batch_size=2,
        max_steps=9,
        ddp_backend="gloo",
        save_strategy="steps",
        save_steps=5,
    )
    halves.train()
    accumulated = tiny_trainer(
        Path(store),
        folder / "acc",
        batch_size=1,
        max_steps=9,
        gradient_accumulation_steps=2,
        ddp_backend="gloo",
    )
    accumulated.train()
    return {
        "weights": weights(trainer.model).tolist(),
        "accumulated": weights(accumulated.model).tolist(),
        "history": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "kl": evaluation["eval_kl"],
        "num_rows": evaluation["eval_num_rows"],
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    store, folder = sys.argv[1], Path(sys.argv[2])
    seen = accelerate_scenarios(store) | trainer_scenarios(store, folder)
    Path(folder, f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
