"""How many units an actor holds at a time, so that its engine never waits for one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labeler.config.loading import JobConfig
from labeler.config.run_settings import MOST_LEASES
from labeler.planning.plan import PlanTotals
from labeler.teacher.engine_sizes import (
    CPU_BATCHED_TOKENS,
    CPU_SEQUENCES,
    DEVICE_BATCHED_TOKENS,
    DEVICE_SEQUENCES,
    QUEUED_BATCHES,
    SPARE_SEQUENCES,
)


@dataclass(frozen=True, slots=True)
class InFlight:
    """Units that an actor holds."""

    leases: int
    warning: str = ""
    """Why that is fewer than the engine could use, and the remedy."""


def units_in_flight(job: JobConfig, totals: PlanTotals) -> InFlight:
    """`workers.leases`, or the number that keeps an engine of this job full with units of this plan; at a
    server, `teacher.api.concurrency`.

    Those are the units whose prompts fill the engine, one that flows in when they are drawn, and on a GPU one
    more that is being written: storage may take as long over a unit as the engine.
    """
    workers = job.workers
    if workers.leases is not None:
        return InFlight(workers.leases)
    if job.teacher.engine == "fake" or not totals.num_planned:
        return InFlight(2)
    sequences, tokens = _capacity(job)
    filling = math.ceil(sequences * totals.num_units / (totals.num_planned * job.labels_per_record))
    if job.labels.mode == "score" and tokens:
        filling = min(filling, math.ceil(tokens * totals.num_units / totals.num_tokens))
    wanted = filling + (2 if workers.gpus else 1)
    if wanted <= MOST_LEASES:
        return InFlight(wanted)
    each = totals.num_planned / totals.num_units
    full, waits = "an engine", "engines will wait"
    if job.teacher.engine == "openai":
        full, waits = f"teacher.api.concurrency = {sequences:g}", "fewer requests will be on their way"
    return InFlight(
        MOST_LEASES,
        f"units of {each:.0f} records are small: {filling} of them fill {full} and an actor holds at most "
        f"{MOST_LEASES}, so {waits}; raise output.unit_size and output.unit_tokens for a new store",
    )


def _capacity(job: JobConfig) -> tuple[float, int]:
    """Sequences, and tokens to score, that an engine of the job takes at a time; 0 tokens is no bound."""
    if job.teacher.engine == "openai":
        return float(job.teacher.api.concurrency), 0
    on_gpu, arguments = job.workers.gpus > 0, job.teacher.engine_args
    sequences = int(arguments.get("max_num_seqs", DEVICE_SEQUENCES if on_gpu else CPU_SEQUENCES))
    step_tokens = int(
        arguments.get("max_num_batched_tokens", DEVICE_BATCHED_TOKENS if on_gpu else CPU_BATCHED_TOKENS)
    )
    return sequences * SPARE_SEQUENCES, QUEUED_BATCHES * step_tokens * job.teacher.pipeline_parallel_size
