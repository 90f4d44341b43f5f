"""Which process this is among those that read, and who else might be dividing the data."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

from trainer.errors import ReshardingError

_MAX_FRAMES = 12


@dataclass(frozen=True, slots=True)
class Topology:
    """`rank` of `world_size` readers of different data."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must lie in [0, world_size={self.world_size})")


def resolve_topology(rank: int | None, world_size: int | None, replication: int) -> Topology:
    """As given, else from torch.distributed if it runs, else from RANK and WORLD_SIZE, else one process.

    `replication` consecutive ranks (of one tensor- or sequence-parallel group) read the same data.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank} and world_size={world_size} belong together; give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        elif "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        else:
            rank, world_size = 0, 1
    if replication < 1 or world_size % replication:
        raise ValueError(
            f"world_size={world_size} must be a multiple of replication={replication}, "
            "the number of ranks that get the same data"
        )
    return Topology(rank // replication, world_size // replication)


def refuse_resharding(topology: Topology) -> None:
    """Raise if accelerate iterates a dataset that has already given each process its own part.

    accelerate either wraps an IterableDataset so that each process keeps 1/n of what it reads, although
    it reads 1/n already, or lets the first process read for all. Both train on part of the data without
    a sign of it. There is no hook to be told by, so this looks at who is calling.
    """
    if topology.world_size == 1:
        return
    frame = sys._getframe(1)  # noqa: SLF001
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return
        caller = type(frame.f_locals.get("self")).__name__
        if caller in ("IterableDatasetShard", "DataLoaderDispatcher"):
            raise ReshardingError(
                f"accelerate's {caller} divides this dataset among processes, but it already gives rank "
                f"{topology.rank} of {topology.world_size} its own part: data would be lost silently. Use "
                "LogitDataLoader (accelerate leaves it alone) or OfflineDistillationTrainer; or let "
                "accelerate do the dividing by giving the dataset rank=0, world_size=1"
            )
        frame = frame.f_back
