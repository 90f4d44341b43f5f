"""What a job would do: its resolved configuration, its plan, and the bytes and cost to expect."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from labeler.config.loading import JobConfig, resolved
from labeler.driver.progress import duration
from labeler.driver.run import new_planner, read_input
from labeler.planning.plan import KnownRecords, Plan, PlanTotals
from labeler.planning.preflight import Prepared, prepare
from logitstore.job_objects import PLAN_HEAD_NAME

BYTES_PER_ROW = {16: 39.0, 32: 71.0, 64: 131.0, 128: 249.0}
"""Stored bytes of a label row by K with shared codebooks, for a vocabulary of 49,152 (see FORMAT.md)."""


def dry_run(job: JobConfig, *, calibrate: int, as_json: bool) -> str:
    """The report of `--dry-run`; writes nothing into the store. Raises ConfigError as a run would."""
    prepared = prepare(job)
    totals, rejects = _count(job, prepared)
    estimate: dict[str, Any] = {
        **asdict(totals),
        "num_rejects": totals.num_rejects,
        "estimated_bytes": round(totals.num_labels * bytes_per_row(job.labels.top_k)),
    }
    if calibrate:
        from labeler.job.calibration import calibrate_job

        estimate["calibration"] = calibrate_job(job, totals, calibrate)
    if as_json:
        return json.dumps(
            {
                "job": resolved(job),
                "plan": estimate,
                "first_rejects": rejects,
                "unnamed_labels": prepared.unnamed_labels,
            },
            indent=1,
        )
    lines = [json.dumps(resolved(job), indent=1), "", *describe(job, totals, estimate)]
    lines += [f"  {reject}" for reject in rejects]
    if prepared.unnamed_labels:
        lines.append(prepared.unnamed_labels)
    return "\n".join(lines)


def describe(job: JobConfig, totals: PlanTotals, estimate: Mapping[str, Any]) -> list[str]:
    """Plan and estimate in words."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(totals.rejects_by_kind.items()))
    at_most = "at most " if job.labels.mode == "generate" else ""
    lines = [
        f"{totals.num_records:,} records read: {totals.num_planned:,} in {totals.num_units:,} units, "
        f"{totals.num_rejects:,} rejected" + (f" ({kinds})" if kinds else ""),
        f"{totals.num_tokens:,} tokens of input, {at_most}{totals.num_labels:,} label rows, "
        f"{at_most or 'about '}{estimate['estimated_bytes'] / 1e6:,.2f} MB",
    ]
    if "calibration" in estimate:
        found = estimate["calibration"]
        lines += [
            f"{found['records_tried']:,} records tried: "
            f"{found['tokens_per_second_per_replica']:,} tokens/s per "
            f"replica, {found['bytes_per_token']:,} B per label row",
            f"expected with {job.workers.replicas} replicas: {found['expected_tokens']:,} tokens in "
            f"{duration(found['expected_seconds'])}, {found['cost_in_words']}",
        ]
    return lines


def bytes_per_row(top_k: int) -> float:
    """Bytes to expect for a row of `top_k` entries: measured values, interpolated in log K."""
    sizes = sorted(BYTES_PER_ROW.items())
    if top_k <= sizes[0][0]:
        return sizes[0][1] * top_k / sizes[0][0]
    for (low_k, low), (high_k, high) in itertools.pairwise(sizes):
        if top_k <= high_k:
            share = (math.log(top_k) - math.log(low_k)) / (math.log(high_k) - math.log(low_k))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return sizes[-1][1] * top_k / sizes[-1][0]


def _count(job: JobConfig, prepared: Prepared) -> tuple[PlanTotals, list[str]]:
    known = Plan(prepared.objects).known() if prepared.objects.exists(PLAN_HEAD_NAME) else KnownRecords()
    planner = new_planner(job, prepared, known, writer=None)
    totals = planner.run(read_input(job), lambda _: None)
    examples = [f"{reject.file}:{reject.line}: {reject.reason}" for reject in planner.rejects.examples]
    return totals, examples
