"""The arguments of a training: transformers' own, each honoured or refused, and the loss.

`TrainingArguments` has over a hundred fields, and a Trainer of another kind ignores some of them without a
word. So every field stands in one of the tables here, and a test compares them with
`dataclasses.fields(TrainingArguments)`: a field that is new in transformers has to be placed first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils.import_utils import is_liger_kernel_available

from trainer.hf.checks.amounts import check_amounts, check_numbers
from trainer.hf.checks.optimizer import check_optimizer_name
from trainer.hf.evaluation.better import LOWER_IS_BETTER
from trainer.loss.loss_settings import Divergence, ForeignIds, LossSettings, Tail

LOSS_FIELDS = tuple(item.name for item in fields(LossSettings) if item.name != "ignore_index")
"""Settings of the loss that are arguments too; the label that does not count is always -100."""

# fmt: off
HONOURED = frozenset(
    (
        "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim",
        "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "optim_target_modules", "gradient_accumulation_steps", "average_tokens_across_devices",
        "max_grad_norm", "bf16", "fp16", "tf32", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha",
        "torch_empty_cache_steps", "logging_strategy", "logging_steps", "logging_first_step",
        "log_on_each_node", "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level",
        "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
        "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay",
        "per_device_eval_batch_size", "eval_on_start",
        "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
        "include_for_metrics", "batch_eval_metrics", "save_only_model", "save_strategy",
        "save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint",
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
        "hub_always_push", "hub_revision", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "restore_callback_states_from_checkpoint", "full_determinism", "seed",
        "use_cpu", "accelerator_config", "dataloader_num_workers", "dataloader_pin_memory",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
        "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed",
        "debug", "skip_memory_metrics",
    )
)
# fmt: on
SET = {"remove_unused_columns": False, "ignore_data_skip": True}
"""What is set whatever was given: batches have the loss's keys, and the dataset goes on by itself."""
OF_SCRIPTS = frozenset({"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"})
"""Not read by transformers' Trainer either, but by the scripts around it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The values that change nothing, and why others are refused and what to do instead."""

    allowed: tuple[Any, ...]
    reason: str

    def allows(self, value: Any) -> bool:
        return value in self.allowed


REFUSED: dict[str, Refusal] = {
    "label_smoothing_factor": Refusal(
        (0.0,), "the loss has no label smoothing; the teacher's distribution does that, raise alpha"
    ),
    "train_sampling_strategy": Refusal(
        ("random",),
        "the order is the dataset's: give StreamingLogitDataset shuffle=False for a sequential one",
    ),
    "length_column_name": Refusal(("length",), "batches are not grouped by a column; leave it out"),
    "data_seed": Refusal((None,), "the order is the dataset's: give StreamingLogitDataset seed=..."),
    "dataloader_drop_last": Refusal(
        (False,),
        "the last, smaller step of an epoch counts by its labels, so nothing is dropped; leave it off",
    ),
    "dataloader_persistent_workers": Refusal(
        (False,), "such workers do not learn where an epoch begins; leave it off"
    ),
    "dataloader_in_order": Refusal((True,), "the order of batches is promised; leave it on"),
    "auto_find_batch_size": Refusal(
        (False,), "the dataset's batch_size is fixed; lower it and per_device_train_batch_size instead"
    ),
    "bf16_full_eval": Refusal(
        (False,), "the student is evaluated in the precision that it is trained in; leave it off"
    ),
    "fp16_full_eval": Refusal(
        (False,), "the student is evaluated in the precision that it is trained in; leave it off"
    ),
    "use_cache": Refusal((False,), "with a cache, packed documents would not be kept apart; leave it off"),
    "prediction_loss_only": Refusal(
        (False,), "evaluation gives the figures of `Evaluation`, and those of compute_metrics; leave it off"
    ),
    "label_names": Refusal((None, ["labels"]), "labels are the batch's key 'labels'; leave it out"),
    "parallelism_config": Refusal(
        (None,),
        "sequences are whole on each process; tensor parallelism needs a loop of your own with the dataset's "
        "replication, FSDP and DeepSpeed ZeRO-2 work by their own arguments",
    ),
}


def _refuse_zero_3(deepspeed: Any) -> None:
    """By DeepSpeed's own configuration, or accelerate's, before a model is partitioned."""
    if isinstance(deepspeed, str):
        deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if isinstance(deepspeed, Mapping):
        stage = deepspeed.get("zero_optimization", {}).get("stage", stage)
    _refuse_stage(stage)


def _refuse_stage(stage: Any) -> None:
    if str(stage) == "3":
        raise ValueError(
            "DeepSpeed's ZeRO stage 3 is not supported: it empties the weights between calls of the model, "
            "and the loss reads the output head's inside one. Use stage 2, or FSDP (fsdp=True), which shards "
            "weights too"
        )


def _check_accelerator(config: Any) -> None:
    """accelerate is not given our loader to prepare, so what it would do with it is refused."""
    for name in ("split_batches", "dispatch_batches", "non_blocking"):
        if getattr(config, name, None):
            raise ValueError(
                f"accelerator_config has {name}={getattr(config, name)!r}: the dataset divides batches among "
                "processes by itself; leave it out"
            )


def _check_state_dict(fsdp: Mapping[str, Any] | None) -> None:
    kind = (fsdp or {}).get("state_dict_type", "FULL_STATE_DICT")
    if getattr(kind, "name", kind) not in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        raise ValueError(
            f"fsdp_config has state_dict_type={str(kind)!r}, in which FSDP2 saves nothing; give "
            "'SHARDED_STATE_DICT' for checkpoints in parts, or leave it out for whole ones"
        )


@dataclass
class OfflineDistillationConfig(TrainingArguments):
    """TrainingArguments and the loss; `LossSettings` documents the settings of the same names."""

    temperature: float = 1.0
    alpha: float = 0.5
    beta: float = 0.0
    divergence: Divergence = "generalized_jsd"
    tail: Tail = "bucket"
    vocab_size: int | None = None
    foreign_ids: ForeignIds = "error"
    scale_by_temperature_squared: bool = True
    fused: bool = True
    """Never hold [batch, tokens, vocabulary] logits."""
    chunk_rows: int | None = None
    """Rows per chunk of the fused loss; None takes what fits its buffer."""
    max_eval_sequences: int | None = None
    """Held-out sequences evaluated, chosen by a hash of their records' ids and so always the same; None takes
    all."""
    logging_nan_inf_filter: bool = False
    """transformers' default logs the mean of earlier steps where the loss is not finite, and trains on."""
    run_settings: dict[str, Any] | None = field(default=None, init=False)
    """Settings by name that trackers are told besides these arguments; set once the arguments are made."""

    def __post_init__(self) -> None:
        self.assumes_greater_is_better = self.greater_is_better is None
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers takes every metric whose name does not end in "loss" for one to be raised.
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        _refuse_zero_3(self.deepspeed)
        check_optimizer_name(self)
        check_numbers(self)
        super().__post_init__()
        # accelerate launch may have named a file of DeepSpeed's settings, which it has read by now.
        _refuse_stage(getattr(self.deepspeed_plugin, "zero_stage", None))
        for name, value in SET.items():
            setattr(self, name, value)
        self.check_values()
        _check_accelerator(self.accelerator_config)
        _check_state_dict(self.fsdp_plugin_args)
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise ValueError(
                "use_liger_kernel=True needs the package liger-kernel: install it, or leave it out"
            )
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "fp16=True (in a configuration training.precision='fp16') would train in float32 on a CPU, "
                "which has no such mixed precision; give bf16=True, or leave it out"
            )
        self.loss_settings()

    def check_values(self) -> None:
        """Raises ValueError for a value of an argument that would be ignored."""
        for name, refusal in REFUSED.items():
            if not refusal.allows(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: {refusal.reason}")
        check_amounts(self)

    def to_dict(self) -> dict[str, Any]:
        """What trackers are told, over the model's configuration, whose `vocab_size` stays the model's."""
        told = super().to_dict()
        told["loss_vocab_size"] = told.pop("vocab_size")
        return told | (self.run_settings or {})

    def loss_settings(self) -> LossSettings:
        """The loss. Raises ValueError for an impossible combination."""
        return LossSettings(**{name: getattr(self, name) for name in LOSS_FIELDS})
