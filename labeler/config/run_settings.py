"""`[output]`, `[workers]`, `[limits]` and `[cost]`: where labels go, who makes them, what ends a job."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, field_validator

from logitstore.common.section import HomePath, Section
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.folders import refuse_file_name

MOST_LEASES = 16
"""Units that an actor may hold at a time."""


class OutputConfig(Section):
    uri: HomePath = Field(min_length=1)
    """Folder or URL (s3://) of the store."""
    unit_size: int = Field(default=64, ge=1)
    """Records of a work unit, which becomes one shard."""
    unit_tokens: int = Field(default=65_536, ge=1)
    """Most tokens of a work unit: long records make smaller units, which bounds an actor's memory."""
    codebook_units: int = Field(default=2, ge=0)
    """Units after which the store's shared codebooks are trained; 0 leaves each shard one of its own."""
    retry_sec: float = Field(default=120, ge=0)
    """How long storage that fails is tried again: by actors for the plan and their labels, and by the driver
    for the plan, compaction, rejects and status."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """fsspec options of the store's storage, such as endpoint_url; credentials come from the environment."""

    @field_validator("uri")
    @classmethod
    def _is_no_file(cls, uri: str) -> str:
        if not os.path.isdir(uri):  # else a store may lie there, of an earlier version
            try:
                refuse_file_name(uri)
            except UnsupportedInputError as error:
                raise ValueError(str(error)) from None
        return uri


class WorkersConfig(Section):
    replicas: int = Field(default=1, ge=1)
    """Engines that run side by side, one per Ray actor."""
    machines: int = Field(default=1, ge=1)
    """Machines of a replica, for a teacher too large for one: a Ray placement group holds them. The stages of
    `teacher.pipeline_parallel_size` are divided among them evenly."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica on each of its machines; 0 runs on the CPU. Below 1, replicas share a GPU: each takes
    that part of its memory, unless `gpu_memory_utilization` in `teacher.engine_args` says otherwise."""
    cores: int = Field(default=1, ge=1)
    """CPU cores of a replica on each of its machines. Without GPUs an engine on one machine is bound to cores
    of its own."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further Ray resources of a replica on each of its machines, for example {"teacher-node" = 0.01}."""
    address: str | None = None
    """Ray cluster to join; None takes RAY_ADDRESS, or starts a cluster on this machine for the job alone."""
    restarts: int = Field(default=3, ge=0)
    """Engine deaths in a row, without a finished unit between, after which a replica is given up."""
    leases: int | None = Field(default=None, ge=1, le=MOST_LEASES)
    """Units that an actor holds at a time: in the engine, waiting, being written. None is the number that
    keeps the engine full: 2 where one unit fills it, more where units are small or the engine large."""
    lease_sec: float = Field(default=900, gt=0)
    """A lease expires when its actor has shown no progress for so long; the unit then goes to another."""
    start_sec: float = Field(default=1800, gt=0)
    """Longest time an engine may take to load."""
    drain_sec: float = Field(default=60, ge=0)
    """On SIGTERM: time to finish the units at work before they are given back."""
    driver_lease_sec: float = Field(default=30, gt=0)
    """A driver that has not renewed its lease on the store for so long may be replaced by another."""

    @field_validator("resources")
    @classmethod
    def _are_further_ones(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if own := {"CPU": "workers.cores", "GPU": "workers.gpus"}.get(name):
                raise ValueError(f"{name!r} is what {own} sets, and has no other amount here; remove it")
            if amount < 0:
                raise ValueError(
                    f"{name!r} has the amount {amount:g}, which no node can give; make it 0 or more"
                )
        return resources


class LimitsConfig(Section):
    max_reject_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the records that may be rejected before the job stops."""
    min_records: int = Field(default=20, ge=1)
    """Rejects are judged as a share of at least so many records: one bad record of three is no stop."""
    wait_sec: float | None = Field(default=None, gt=0)
    """How long a job waits while not one replica finds room in the cluster; it then ends with exit status 1.
    None waits for ever, but ends at once where no node has the GPUs of `workers.gpus` and the cluster starts
    none by itself. A wait is noticed after 30 seconds."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the stored sequences, prompts and earlier runs included, at which the job stops as on a
    signal: units at work are finished, and the same command with a higher limit goes on. What one prompt's
    tokens cost is paid once for each of its `sampling.n` responses."""
    max_cost: float | None = Field(default=None, gt=0)
    """Money at which the job stops likewise, by the prices of `[cost]`: what a server billed, refused and
    repeated requests included, and the devices, over all runs of the store, or of all steps of a recipe. What
    is at work when it is reached is finished and paid beyond it: small units (`output.unit_size`) keep that
    small. Not counted: answers that were lost, a trial of `--calibrate`, the two short requests of a replica
    that found the server unfit, and money in another currency, which is said."""


class CostConfig(Section):
    """Prices for the estimate of `--dry-run`, the sum at the end and `limits.max_cost`; 0 leaves the money
    out."""

    per_gpu_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one GPU."""
    per_core_hour: float = Field(default=0.0, ge=0)
    """Price of an hour of one CPU core, counted for replicas without GPUs."""
    per_gb_month: float = Field(default=0.0, ge=0)
    """Price of a month of one GB (10^9 bytes) of storage."""
    price_per_million_input_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens that a server is given (`teacher.engine = "openai"`), as it counts them."""
    price_per_million_output_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens that a server writes."""
    currency: str = "USD"
    """Name of the money."""
