"""What a job costs: device seconds, bytes, and what given prices make of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labeler.config.loading import CostConfig, JobConfig

SECONDS_PER_HOUR = 3600
BYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True)
class Cost:
    """Of work done, or expected."""

    device: str
    """"gpu" or "core"."""
    device_sec: float
    """Devices times the seconds they were held, loading included."""
    num_tokens: int
    num_bytes: int
    compute: float
    """Money for the devices; 0 where no price is given."""
    storage_per_month: float
    """Money for keeping the bytes a month; 0 where no price is given."""
    currency: str

    @property
    def device_sec_per_million_tokens(self) -> float:
        return self.device_sec / self.num_tokens * 1e6 if self.num_tokens else 0.0

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "device_sec_per_million_tokens": self.device_sec_per_million_tokens}

    def __str__(self) -> str:
        text = (
            f"{self.device_sec:,.0f} {self.device} seconds "
            f"({self.device_sec_per_million_tokens:,.0f} per million tokens), {self.num_bytes / 1e6:,.2f} MB"
        )
        if self.compute:
            text += f", {self.compute:,.4f} {self.currency}"
        if self.storage_per_month:
            text += f", {self.storage_per_month:,.6f} {self.currency} a month to keep"
        return text


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
