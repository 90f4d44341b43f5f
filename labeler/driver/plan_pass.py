"""The plan of a run's present input: the one in the store, or that of a new pass over the input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from labeler.config.loading import JobConfig, identity, resolved
from labeler.errors import NothingToLabelError, TooManyRejectsError
from labeler.job.logs import JobLog
from labeler.job.status import Tally
from labeler.planning.plan import KnownRecords, Plan, PlanTotals, SegmentWriter
from labeler.planning.planner import Planner
from labeler.planning.preflight import Prepared, input_info
from labeler.planning.provenance import provenance_of
from labeler.planning.relabeling import replace_changed
from labeler.prompting.prompts import PromptBuilder
from labeler.prompting.tokenization import Tokenizer
from logitstore.common.secrets import redact_uri
from logitstore.inputs.listing import unread_files
from logitstore.inputs.parts import parts_of
from logitstore.inputs.raw_record import RawRecord
from logitstore.inputs.reading import iter_records
from logitstore.job_objects import JOB_NAME, REJECTS_NAME
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.store import LogitStore

MOST_NAMED_FILES = 5


def why_nothing(job: JobConfig, totals: PlanTotals, reasons: str) -> str:
    """What is said where no record can be labeled; `reasons` is where they stand."""
    number, _, parts = job.input.slice.partition("/")
    if parts and int(number) and not totals.num_records:
        of = f"the first {job.input.limit:,} records of " if job.input.limit is not None else ""
        return (
            f"nothing to label: input.slice = {job.input.slice!r} takes no record, as there are at most "
            f"{int(number):,} in {of}input.uri = {redact_uri(job.input.uri)!r}: other slices have them all. "
            "Leave this one's store out of `penumbra store merge`, and take fewer slices (slurm.array) next "
            "time"
        )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(totals.rejects_by_kind.items()))
    return (
        f"nothing to label: input.uri = {redact_uri(job.input.uri)!r} has {totals.num_records:,} records, "
        f"of which {totals.num_rejects:,} are rejected"
        + (f" ({kinds})" if kinds else "")
        + f"; their reasons are {reasons}. Correct the input, input.kind or input.fields"
    )


@dataclass(frozen=True, slots=True)
class PlanPass:
    """Makes the plan for the driver of a store."""

    job: JobConfig
    prepared: Prepared
    plan: Plan
    tally: Tally
    log: JobLog
    note: Callable[[str], None]
    show: Callable[[int], None]
    """Given the records read so far; may end the pass by raising."""
    relabel_changed: bool

    def make(self) -> PlanTotals:
        """The plan of the present input, from the store or by a pass over the input."""
        objects = self.prepared.objects
        anything_labeled = objects.exists(MANIFEST_NAME)
        changes = self.plan.claim(
            identity(self.job),
            provenance_of(self.job, self.prepared.tokenizer),
            has_manifest=anything_labeled,
            num_labeled=num_labeled(self.job) if anything_labeled else 0,
        )
        if changes:
            self.note(anew_in_words(changes))
        objects.put(JOB_NAME, json.dumps(resolved(self.job), indent=1).encode())
        totals = self.plan.totals()
        is_wanted = totals is not None and totals.num_changed and self.relabel_changed
        if totals is not None and self.plan.is_current(self.prepared.fingerprint) and not is_wanted:
            return totals
        self.note(f"planning: reading {redact_uri(self.job.input.uri)}")
        known = self.plan.known()
        writer = SegmentWriter(objects, known)
        planner = new_planner(self.job, self.prepared, known, writer, keep_changed=self.relabel_changed)
        try:
            totals = planner.run(read_input(self.job), self.show)
        except TooManyRejectsError as error:
            self.tally.count_planned_rejects(planner.rejects.by_kind)
            if not anything_labeled:
                self.plan.discard()
                objects.put(REJECTS_NAME, planner.rejects.content())
            if not planner.num_planned:
                raise NothingToLabelError(f"nothing can be labeled: {error}") from None
            raise
        parts = parts_in_words(self.job, totals, planner.num_whole)
        clock = clock_in_words(self.job, self.prepared.tokenizer)
        for text in (unread_in_words(self.job), parts, planner.fallbacks, clock):
            if text:
                self.note(text)
        if planner.changed:
            num_replaced = replace_changed(objects, planner.changed, self._uncommit)
            self.note(f"{num_replaced:,} records have changed; their units are labeled again")
            totals = replace(totals, num_changed=totals.num_changed - num_replaced)
        self.plan.finish_pass(self.prepared.fingerprint, totals, planner.rejects.content())
        self.log.write("planned", **asdict(totals))
        return totals

    def _uncommit(self, unit_ids: set[str]) -> set[str]:
        """Drop the labels of these units; those that have none now."""
        if not self.prepared.objects.exists(MANIFEST_NAME):
            return unit_ids
        store = _opened(self.job)
        labeled = {entry.unit_id: entry.name for entry in store.shards() if entry.unit_id in unit_ids}
        dropped = (
            set(store.uncommit(name for name in labeled.values() if name)) if any(labeled.values()) else set()
        )
        return (unit_ids - labeled.keys()) | dropped


def anew_in_words(changes: str) -> str:
    return f"nothing is labeled yet and the job has changed, so it is planned anew: {changes}"


def refuse_other_settings(job: JobConfig, prepared: Prepared) -> str:
    """For what changes a run would plan the job anew; "" where it would keep its plan, or has none.

    Raises OtherSettingsError where a run would, before anything is read or written.
    """
    has_manifest = prepared.objects.exists(MANIFEST_NAME)
    return Plan(prepared.objects).check(
        identity(job),
        provenance_of(job, prepared.tokenizer),
        has_manifest=has_manifest,
        num_labeled=num_labeled(job) if has_manifest else 0,
    )


def num_labeled(job: JobConfig) -> int:
    """Units that are labeled in the job's store."""
    return len(_opened(job).shards())


def _opened(job: JobConfig) -> LogitStore:
    return LogitStore.open(job.output.uri, storage_options=job.output.storage_options, writing=True)


def new_planner(
    job: JobConfig,
    prepared: Prepared,
    known: KnownRecords,
    writer: SegmentWriter | None,
    *,
    keep_changed: bool = False,
) -> Planner:
    builder = PromptBuilder(job, prepared.tokenizer, prepared.limits)
    return Planner(job, builder, prepared.input_info, known, writer, keep_changed=keep_changed)


def read_input(job: JobConfig) -> Iterator[RawRecord]:
    raw = iter_records(job.input.uri, storage_options=job.input.storage_options)
    return parts_of(itertools.islice(raw, *job.input.taken), input_info(job))


def contents_in_words(totals: PlanTotals) -> list[str]:
    """What the last pass found of records that were known before, in sentences."""
    found = []
    if totals.num_changed:
        found.append(
            f"{totals.num_changed:,} records differ from what was planned or labeled under their ids; "
            "`--relabel-changed` labels them again, else they keep their former labels"
        )
    if totals.num_unproven:
        found.append(
            f"{totals.num_unproven:,} records were planned by an earlier version, which kept no digest of "
            "their content: whether they have changed since is not known"
        )
    if totals.num_deleted:
        found.append(f"{totals.num_deleted:,} records of the input were taken down and get no labels again")
    return found


def parts_in_words(job: JobConfig, totals: PlanTotals, num_whole: int) -> str:
    """How many records the last pass made of `num_whole` of the input; "" where each is one."""
    if not job.parts:
        return ""
    each = "turn of the assistant" if job.parts == "turns" else "text of a list"
    return f"{num_whole:,} records of the input make {totals.num_records:,}, one for each {each}"


def unread_in_words(job: JobConfig) -> str:
    """Which files of the input's folder are not read, for their form or name; "" where there are none."""
    names = unread_files(job.input.uri, storage_options=job.input.storage_options)
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED_FILES:,} more" if len(names) > MOST_NAMED_FILES else ""
    return (
        f"WARNING: {len(names):,} files in the input's folder are not read: "
        f"{', '.join(names[:MOST_NAMED_FILES])}{more}; their names tell no form that is read, or begin with "
        "a dot or an underscore"
    )


def clock_in_words(job: JobConfig, tokenizer: Tokenizer) -> str:
    """That prompts may change from day to day, where the chat template reads the clock; else ""."""
    given = any("date" in name or "time" in name for name in job.input.chat_template_kwargs)
    if not job.has_marks or given or "strftime_now" not in (tokenizer.chat_template or ""):
        return ""
    return (
        "the chat template reads the clock, so that prompts planned on another day may differ; set what it "
        'writes with input.chat_template_kwargs, for example {date_string = "1 Jan 2026"}'
    )
