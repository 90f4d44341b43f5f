"""What a job would do: its resolved configuration, its plan, and the bytes and cost to expect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from labeler.config.loading import JobConfig, resolved, settings_without_effect
from labeler.driver.plan_pass import (
    anew_in_words,
    contents_in_words,
    new_planner,
    parts_in_words,
    read_input,
    refuse_other_settings,
    why_nothing,
)
from labeler.driver.progress import duration
from labeler.job.calibration import Calibration, calibrate_job
from labeler.job.money.cost import cost_of
from labeler.job.segment_colours import Paint, plain
from labeler.job.teacher_view import seen_by_teacher
from labeler.planning.fit.disks import bytes_per_label, disk_lines
from labeler.planning.fit.gpu_memory import memory_need
from labeler.planning.plan import Plan, PlanTotals
from labeler.planning.planner import Planner
from labeler.planning.preflight import Prepared, prepare
from labeler.teacher.output_head import choose_head

BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would do."""

    job: JobConfig
    totals: PlanTotals
    num_bytes: int
    """Stored bytes; an upper bound where the teacher writes responses."""
    first_rejects: tuple[str, ...]
    """Place and reason of some records that cannot be labeled."""
    unnamed_labels: str
    """A sentence about labels in the store that no index names; "" where there are none."""
    calibration: Calibration | None
    """What a trial with the teacher found."""
    num_new: int
    """Records that were not planned before."""
    seen: tuple[str, ...] = ()
    """What the teacher will see of the first records, and where responses end."""
    nothing: str = ""
    """Why there is nothing to label; "" where there is something."""

    def plan_record(self) -> dict[str, Any]:
        """The plan's figures as JSON values."""
        record = {
            **asdict(self.totals),
            "num_rejects": self.totals.num_rejects,
            "estimated_bytes": self.num_bytes,
        }
        if self.calibration is not None:
            record["calibration"] = self.calibration.as_record()
        return record

    def as_record(self) -> dict[str, Any]:
        return {
            "job": resolved(self.job),
            "plan": self.plan_record(),
            "first_rejects": list(self.first_rejects),
            "unnamed_labels": self.unnamed_labels,
            "without_effect": settings_without_effect(self.job),
            "seen_by_teacher": list(self.seen),
        }

    def in_words(self) -> list[str]:
        """Plan and estimate, a line each."""
        totals, job = self.totals, self.job
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(totals.rejects_by_kind.items()))
        at_most = "at most " if job.labels.mode == "generate" else ""
        price = cost_of(job, replica_sec=0, num_tokens=0, num_bytes=self.num_bytes).storage_per_month
        kept = f", {price:,.6f} {job.cost.currency} a month to keep" if price else ""
        planned = f"{totals.num_planned:,} in {totals.num_units:,} units"
        if before := totals.num_planned - self.num_new:
            planned += f" ({self.num_new:,} new, {before:,} planned before)"
        lines = [
            f"{totals.num_records:,} records read: {planned}, {totals.num_rejects:,} rejected"
            + (f" ({kinds})" if kinds else ""),
            f"{totals.num_tokens:,} tokens of input, {at_most}{totals.num_labels:,} label rows, "
            f"{at_most or 'about '}{self.num_bytes / 1e6:,.2f} MB{kept}",
        ]
        lines += _price_in_words(job, totals)
        lines += contents_in_words(totals)
        need = memory_need(job)
        lines += [] if need is None else [str(need)]
        lines += disk_lines(job, self.num_bytes)
        found = self.calibration
        if found is not None:
            lines += [
                f"{found.records_tried:,} records tried: "
                f"{found.tokens_per_second_per_replica:,} tokens/s per replica, "
                f"{found.bytes_per_token:,} B per label row",
                f"expected with {job.workers.replicas} replicas: {found.expected_tokens:,} tokens in "
                f"{duration(found.expected_seconds)}, {found.cost}",
            ]
        lines += [f"  {reject}" for reject in self.first_rejects]
        return [*lines, *filter(None, (settings_without_effect(job), self.unnamed_labels))]


def _price_in_words(job: JobConfig, totals: PlanTotals) -> list[str]:
    """What a server will bill at most, where its prices are given."""
    given, written = job.cost.price_per_million_input_tokens, job.cost.price_per_million_output_tokens
    if not given and not written:
        return []
    asks = totals.num_planned * job.labels_per_record
    num_given = totals.num_tokens * job.labels_per_record
    num_written = asks * (job.sampling.max_tokens if job.labels.mode == "generate" else 1)
    if job.labels.label_at == "rescore" and job.labels.mode == "generate":
        num_given, num_written = 2 * num_given + num_written, num_written + asks
    money = (num_given * given + num_written * written) / 1e6
    return [
        f"the server bills {num_given:,} tokens given and at most {num_written:,} written, at most "
        f"{money:,.4f} {job.cost.currency} without what is asked again"
    ]


def estimate(job: JobConfig, *, calibrate: int = 0, paint: Paint = plain) -> Estimate:
    """Read the input as a run would; with `calibrate` also label so many records for a trial.

    Writes nothing into the store. Raises ConfigError as a run would.
    """
    prepared = prepare(job)
    changes = refuse_other_settings(job, prepared)
    seen = (*seen_by_teacher(job, prepared, paint), *_head_in_words(job))
    if changes:
        seen = (*seen, anew_in_words(changes))
    planner, totals = _count(job, prepared, anew=bool(changes))
    seen = (*seen, *histogram(planner.lengths))
    if parts := parts_in_words(job, totals, planner.num_whole):
        seen = (*seen, parts)
    if planner.fallbacks:
        seen = (*seen, planner.fallbacks)
    if planner.num_repeats:
        seen = (
            *seen,
            f"{planner.num_repeats:,} records without ids equal earlier ones and are labeled like any other",
        )
    rejects = tuple(f"{one.file}:{one.line}: {one.reason}" for one in planner.rejects.examples)
    nothing = "" if totals.num_units else why_nothing(job, totals, "above")
    calibration = None
    if calibrate and not nothing:
        calibration = calibrate_job(job, totals, calibrate)
    num_bytes = round(totals.num_labels * bytes_per_label(job.labels))
    num_new = planner.lengths.total()
    return Estimate(
        job, totals, num_bytes, rejects, prepared.unnamed_labels, calibration, num_new, seen, nothing
    )


def _head_in_words(job: JobConfig) -> list[str]:
    """How the teacher's head computes on the devices that the job asks for."""
    if job.teacher.engine != "vllm":
        return []
    from transformers import PretrainedConfig

    model_config, _ = PretrainedConfig.get_config_dict(job.teacher.model, revision=job.teacher.revision)
    choice = choose_head(job.teacher, model_config, on_gpu=job.workers.gpus > 0)
    return [f"logits: {choice.in_words}"]


def dry_run(
    job: JobConfig, *, calibrate: int, as_json: bool, with_settings: bool, paint: Paint = plain
) -> tuple[str, str]:
    """The report of `--dry-run`: what the teacher will see and the plan; every setting where asked for. And
    why there is nothing to label, or ""."""
    found = estimate(job, calibrate=calibrate, paint=plain if as_json else paint)
    if as_json:
        return json.dumps(found.as_record(), indent=1), found.nothing
    settings = [json.dumps(resolved(job), indent=1), ""] if with_settings else []
    return "\n".join([*settings, *found.seen, "", *found.in_words()]), found.nothing


def _count(job: JobConfig, prepared: Prepared, *, anew: bool) -> tuple[Planner, PlanTotals]:
    known = Plan(prepared.objects).known(anew=anew)
    planner = new_planner(job, prepared, known, writer=None)
    return planner, planner.run(read_input(job), lambda _: None)


def histogram(lengths: Mapping[int, int]) -> list[str]:
    """A line for each range of lengths; `lengths` counts records by the power of 2 that holds them."""
    if not lengths:
        return []
    largest, lines = max(lengths.values()), ["tokens of records that are new to the plan:"]
    bound = min(lengths)
    while bound <= max(lengths):
        count = lengths.get(bound, 0)
        bar = "#" * math.ceil(BAR_WIDTH * count / largest)
        lines.append(f"  {bound // 2 + 1:>9,} to {bound:>9,} {count:>9,} {bar}".rstrip())
        bound *= 2
    return lines
