"""A short trial of a job's own teacher on its own first records, to know time, bytes and cost beforehand."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from labeler.config.loading import JobConfig
from labeler.driver.run import RunOptions, run
from labeler.job.money.cost import cost_of, devices_per_replica
from labeler.planning.plan import Plan, PlanTotals
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.job_objects import Cost
from logitstore.objects.opening import Objects

UNITS = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a trial found, and what it makes of the whole job."""

    records_tried: int
    """Records that the trial labeled."""
    tokens_per_second_per_replica: float
    bytes_per_token: float
    """Stored bytes per label row."""
    expected_tokens: int
    expected_bytes: int
    expected_seconds: float
    """From the start of the replicas to the end of the last."""
    cost: Cost

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "cost": self.cost.as_record(), "cost_in_words": str(self.cost)}


def calibrate_job(job: JobConfig, totals: PlanTotals, num_records: int) -> Calibration:
    """Label up to `num_records` of the job's records with one replica into a store that is thrown away, and
    extrapolate.

    The job is expected to take, per token of the plan, what the trial's engine took per token of its own;
    loading is counted once per replica. Raises ConfigError if the trial fails or is too short to measure.
    """
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        trial = trial_of(job, f"{folder}/store", num_records)
        exit_status, status = run(trial, RunOptions(quiet=True))
        trial_totals = Plan(Objects(f"{folder}/store")).totals()
        if exit_status is not ExitStatus.DONE or status.cost is None or trial_totals is None:
            raise ConfigError(
                "the calibration did not end well, so nothing can be estimated; see the error above"
            )
    if not status.engine_sec:
        raise ConfigError(
            f"the teacher took less than a millisecond over {trial_totals.num_planned} records, too short to "
            "estimate from; give --calibrate more records"
        )
    ratio = totals.num_tokens / trial_totals.num_tokens
    replicas = job.workers.replicas
    held_sec = status.cost.device_sec / devices_per_replica(job)
    load_sec = max(held_sec - status.engine_sec, 0.0)
    engine_sec = status.engine_sec * ratio
    num_tokens, num_bytes = round(status.tokens * ratio), round(status.bytes * ratio)
    cost = cost_of(
        job, replica_sec=engine_sec + load_sec * replicas, num_tokens=num_tokens, num_bytes=num_bytes
    )
    return Calibration(
        records_tried=trial_totals.num_planned,
        tokens_per_second_per_replica=round(status.tokens / status.engine_sec, 1),
        bytes_per_token=status.bytes_per_token,
        expected_tokens=num_tokens,
        expected_bytes=num_bytes,
        expected_seconds=round(engine_sec / replicas + load_sec, 1),
        cost=cost,
    )


def trial_of(job: JobConfig, uri: str, num_records: int) -> JobConfig:
    """The job with its first `num_records` records, or all if it has fewer, one replica and another store."""
    output = {"uri": uri, "storage_options": {}, "unit_size": max(num_records // UNITS, 1)}
    first, stop, step = job.input.taken
    limit = first + (num_records - 1) * step + 1  # of the input, of which a slice takes every so many-th
    return job.model_copy(
        update={
            "input": job.input.model_copy(update={"limit": limit if stop is None else min(limit, stop)}),
            "output": job.output.model_copy(update=output),
            "workers": job.workers.model_copy(update={"replicas": 1}),
        }
    )
