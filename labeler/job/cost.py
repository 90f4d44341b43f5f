"""What a job costs: device seconds, bytes, and what given prices make of them."""

from __future__ import annotations

from labeler.config.loading import CostConfig, JobConfig
from logitstore.job_objects import Cost

SECONDS_PER_HOUR = 3600
BYTES_PER_GB = 1e9


def devices_per_replica(job: JobConfig) -> float:
    """GPUs, or CPU cores where a replica has no GPU, on all of its machines."""
    return (job.workers.gpus or job.workers.cores) * job.workers.machines


def cost_of(job: JobConfig, *, replica_sec: float, num_tokens: int, num_bytes: int) -> Cost:
    """`replica_sec` is the sum over replicas of the seconds that each was held."""
    prices: CostConfig = job.cost
    on_gpu = job.workers.gpus > 0
    device_sec = replica_sec * devices_per_replica(job)
    per_hour = prices.per_gpu_hour if on_gpu else prices.per_core_hour
    return Cost(
        device="gpu" if on_gpu else "core",
        device_sec=device_sec,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        compute=device_sec / SECONDS_PER_HOUR * per_hour,
        storage_per_month=num_bytes / BYTES_PER_GB * prices.per_gb_month,
        currency=prices.currency,
    )
