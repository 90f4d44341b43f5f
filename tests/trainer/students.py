"""Tiny students and trainers for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.trainer import OfflineDistillationTrainer

VOCAB_SIZE = 64


def tiny_student(vocab_size: int = VOCAB_SIZE, seed: int = 0, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            attention_dropout=dropout,
        )
    )


def tiny_trainer(
    store: Path,
    folder: Path,
    *,
    model: Any = None,
    batch_size: int = 4,
    even: bool = True,
    dataset: dict[str, Any] | None = None,
    collate: dict[str, Any] | None = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> OfflineDistillationTrainer:
    """Plain SGD, so that equal gradients give equal weights."""
    settings: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    args = OfflineDistillationConfig(
        output_dir=str(folder), per_device_train_batch_size=batch_size, **settings
    )
    common: dict[str, Any] = {"batch_size": batch_size, "num_splits": 3, "seed": 1, **(dataset or {})}
    return OfflineDistillationTrainer(
        model=None if "model_init" in (trainer or {}) else model or tiny_student(),
        args=args,
        train_dataset=train_dataset
        or StreamingLogitDataset(store, held_out=HeldOut(0.2), even=even, **common),
        data_collator=DistillationCollator(
            CollateSettings(temperature=args.temperature, with_teacher=args.alpha > 0, **(collate or {}))
        ),
        eval_dataset=eval_dataset
        or StreamingLogitDataset(store, held_out=HeldOut(0.2, "held_out"), **common),
        **(trainer or {}),
    )


def weights(model: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])
