"""Whether the processes that train, the dataset's division among them and the batches agree."""

from __future__ import annotations

import warnings

import torch
from accelerate.utils import DistributedType
from transformers.training_args import ParallelMode

from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.errors import ReshardingError, TrainingWarning
from trainer.hf.arguments import OfflineDistillationConfig
from trainer.hf.checks.lengths import WARNED_SHARE
from trainer.hf.epochs import Place
from trainer.loss.loss_settings import LossSettings

DEFAULT_EVAL_BATCH_SIZE = 8
"""transformers' own; whoever leaves it means the dataset's."""


def check_launched(args: OfflineDistillationConfig) -> None:
    """Raises ValueError where one process alone shall shard, before transformers says that it cannot."""
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError(
            f"fsdp={args.fsdp!r} (in a configuration training.fsdp) shards the student among processes, and "
            "this is one alone; start several by `torchrun --nproc-per-node N ...`, or leave it out"
        )


def check_processes(args: OfflineDistillationConfig, distributed_type: DistributedType) -> None:
    """Raises ReshardingError and ValueError where a step would not be divided as the arguments say."""
    if args.n_gpu > 1:
        raise ReshardingError(
            f"this process has {args.n_gpu} GPUs and would divide each batch among them; start one "
            f"for each, `torchrun --nproc-per-node {args.n_gpu} ...`, or set CUDA_VISIBLE_DEVICES=0"
        )
    if args.fsdp and distributed_type != DistributedType.FSDP:
        raise ValueError(
            "fsdp was asked for, but accelerate shards on GPUs alone and would train by plain data "
            f"parallelism here ({distributed_type}); leave fsdp out (training.fsdp in a "
            "configuration)"
        )


def check_dataset(
    dataset: StreamingLogitDataset, collate: CollateSettings, *, num_processes: int, train_batch_size: int
) -> None:
    """Raises ReshardingError and ValueError where the dataset gives other batches than training takes."""
    if dataset.num_readers != num_processes:
        raise ReshardingError(
            f"the dataset is divided among {dataset.num_readers} processes, but {num_processes} train; "
            "construct it after TrainingArguments (which starts torch.distributed), or give rank and "
            "world_size"
        )
    if dataset.topology.world_size > 1 and not dataset.even:
        raise ValueError(
            f"an epoch may give some of {num_processes} processes one step more than others, which would "
            "then wait for ever; construct the dataset with even=True"
        )
    _check_every_process_gets_some(dataset)
    packing = dataset.packing
    if packing is not None and (packing.row_tokens, packing.max_tokens) != (
        collate.pack_length,
        collate.max_length,
    ):
        raise ValueError(
            f"the dataset packs rows of {packing.row_tokens} tokens of sequences of at most "
            f"{packing.max_tokens}, the collator has pack_length={collate.pack_length} and "
            f"max_length={collate.max_length}; give Packing(row_tokens, max_tokens) and CollateSettings "
            "(pack_length, max_length) the same"
        )
    if dataset.batch_size != train_batch_size:
        raise ValueError(
            f"the dataset has batch_size={dataset.batch_size}, training "
            f"per_device_train_batch_size={train_batch_size}; give both the same"
        )


def _check_every_process_gets_some(dataset: StreamingLogitDataset) -> None:
    """Raises ValueError for an epoch without a step, and says what of it is left out each time."""
    things = "sequences" if dataset.packing is None else "packed rows"
    processes = dataset.topology.world_size
    whole, rest = divmod(dataset.epoch_length, dataset.step_size)
    left_out = rest if dataset.even and rest < processes else 0
    if not whole and (left_out or not rest):
        raise ValueError(
            f"an epoch has {dataset.epoch_length} {things}, fewer than the {processes} processes, which take "
            "the same number of steps: none would get any; start fewer processes, or take shorter rows "
            "(pack_length) or more data"
        )
    if left_out > WARNED_SHARE * dataset.epoch_length and dataset.topology.rank == 0:
        warnings.warn(
            f"{left_out} of the {dataset.epoch_length} {things} of an epoch are left out, others in each "
            f"epoch, as they are too few for a step of all {processes} processes; start fewer processes, or "
            "leave it if that is meant",
            TrainingWarning,
            stacklevel=3,
        )


def check_one_place(place: Place, device: torch.device) -> None:
    """Raises ReshardingError, on all processes alike, where they would train on from different places."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    own = torch.tensor([place.num_steps, place.epoch, place.consumed], device=device)
    first, last = own.clone(), own.clone()
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(last, torch.distributed.ReduceOp.MAX)
    if not torch.equal(first, last):
        raise ReshardingError(
            f"the processes would train on from different places: this one after {place.num_steps} steps, "
            f"some after {int(first[0])} and some after {int(last[0])}. They do not see the same "
            "checkpoints; give an output_dir (in a configuration output.folder) on storage that all machines "
            "share"
        )


def check_batch_size(args: OfflineDistillationConfig, dataset: StreamingLogitDataset) -> None:
    """Raises ValueError for an evaluation set whose batches are others than the arguments say."""
    if args.per_device_eval_batch_size not in (DEFAULT_EVAL_BATCH_SIZE, dataset.batch_size):
        raise ValueError(
            f"an evaluation set has batch_size={dataset.batch_size}, the arguments have "
            f"per_device_eval_batch_size={args.per_device_eval_batch_size}; give both the same, or leave the "
            "argument out"
        )


def check_unchanged(
    args: OfflineDistillationConfig, loss: LossSettings, dataset: StreamingLogitDataset
) -> None:
    """Raises ValueError for arguments that were set after the Trainer was made, as by a search for the best
    ones, and that it would ignore."""
    args.check_values()
    if args.loss_settings() != loss:
        raise ValueError(
            f"the arguments now say {args.loss_settings()}, the Trainer was made with {loss}, to which its "
            "batches and checks belong; make a Trainer for each loss (penumbra train sweep does)"
        )
    if args.train_batch_size != dataset.batch_size:
        raise ValueError(
            f"the arguments now say per_device_train_batch_size={args.train_batch_size}, the dataset has "
            f"batch_size={dataset.batch_size}; make a dataset and a Trainer for each (penumbra train sweep "
            "does)"
        )
