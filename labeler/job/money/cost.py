"""What a job costs: device seconds, bytes, what a server billed, and what given prices make of them."""

from __future__ import annotations

from collections.abc import Sequence

from labeler.config.loading import CostConfig, JobConfig
from logitstore.job_objects import BILLS_PREFIX, Bill, Cost
from logitstore.job_parsing import parse_bill
from logitstore.objects.opening import Objects

SECONDS_PER_HOUR = 3600
BYTES_PER_GB = 1e9


def devices_per_replica(job: JobConfig) -> float:
    """GPUs, or CPU cores where a replica has no GPU, on all of its machines."""
    return (job.workers.gpus or job.workers.cores) * job.workers.machines


def cost_of(
    job: JobConfig, *, replica_sec: float, num_tokens: int, num_bytes: int, bills: Sequence[Bill] = ()
) -> Cost:
    """`replica_sec` is the sum over replicas of the seconds that each was held, `bills` are those of all
    runs; bills in another currency than the job's count in tokens alone, which `Spending.begin` says."""
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
        billed=sum(bill.money for bill in bills if bill.currency == prices.currency),
        billed_input_tokens=sum(bill.input_tokens for bill in bills),
        billed_output_tokens=sum(bill.output_tokens for bill in bills),
        answers_lost=sum(bill.num_lost for bill in bills),
        answers_on_the_way=sum(bill.num_on_the_way for bill in bills),
    )


def over_budget(job: JobConfig, money: float) -> str:
    """What is said where `limits.max_cost` is reached."""
    return (
        f"limits.max_cost = {job.limits.max_cost:g} {job.cost.currency} is reached: {money:,.4f} "
        f"{job.cost.currency} are spent in all runs"
    )


def read_bills(objects: Objects) -> list[Bill]:
    """What servers billed all workers of all runs.

    Raises CorruptManifestError for a bill that is none, OSError for storage that fails.
    """
    names = objects.list(BILLS_PREFIX)
    contents = zip(names, objects.get_many(names), strict=True)
    return [parse_bill(content, name) for name, content in contents if content is not None]
