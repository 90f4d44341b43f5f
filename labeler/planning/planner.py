"""One pass over the input: every record goes into a unit of the plan or among the rejects.

Memory does not grow with the input but for 16 bytes per record, by which repeated ids are found.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from labeler.config.loading import JobConfig
from labeler.errors import BadRecordError, TooManyRejectsError
from labeler.planning.digests import DigestSet, content_digest
from labeler.planning.plan import KnownRecords, PlanTotals, SegmentWriter
from labeler.planning.relabeling import ChangedRecord
from labeler.planning.units import unit_id_of
from labeler.prompting.prompts import PromptBuilder
from labeler.records import PlannedRecord, TokenizedPrompt
from logitstore.inputs.identity import digest_of, repeated_id
from logitstore.inputs.parts import id_of, parent_id
from logitstore.inputs.proofs import proof_of
from logitstore.inputs.raw_record import RawRecord
from logitstore.manifest.fields import InputInfo
from logitstore.records import Reject

NUM_EXAMPLES = 3
CHECK_EVERY_RECORDS = 10_000
SPOOL_BYTES = 8 * 2**20


class RejectLog:
    """Rejects of one pass, counted by kind; the lines themselves spill to disk."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        self.examples: list[Reject] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115

    def add(self, reject: Reject) -> None:
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(reject)
        self.by_kind[reject.kind] += 1
        self._file.write(json.dumps(asdict(reject), ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def content(self) -> bytes:
        """All of them as JSON lines."""
        self._file.seek(0)
        return self._file.read()


class Planner:
    """Plans the records of one pass. Without a writer it only counts, for `--dry-run`."""

    def __init__(
        self,
        job: JobConfig,
        builder: PromptBuilder,
        input_info: InputInfo,
        known: KnownRecords,
        writer: SegmentWriter | None,
        *,
        keep_changed: bool = False,
    ) -> None:
        self.rejects = RejectLog()
        self.num_repeats = 0
        """Records without ids of their own that equal an earlier one, and are labeled like any other."""
        self.lengths: Counter[int] = Counter()
        """Planned records by their tokens: n counts those of more than n / 2 and at most n, a power of 2."""
        self.num_whole = 0
        """Records of the input, of which `PlanTotals.num_records` counts the parts."""
        self._place: tuple[str, int] | None = None
        self._repeats: Counter[bytes] = Counter()
        self.changed: dict[bytes, ChangedRecord] = {}
        """With `keep_changed`: records whose content is not what was planned, by their id's digest."""
        self._keep_changed = keep_changed
        self._num_changed = 0
        self._num_unproven = 0
        self._num_deleted = 0
        self._job = job
        self._builder = builder
        self._input_info = input_info
        self._known = known
        self._writer = writer
        self._seen = DigestSet()
        self._seen_prompts = DigestSet()
        self._num_records = 0
        self._num_planned = known.num_planned
        self._num_units = known.num_units
        self._num_tokens = known.num_tokens
        self._num_labels = known.num_labels
        self._drop_repeated_prompts = (
            job.labels.mode == "generate" and job.filters.duplicate_prompts == "drop"
        )
        self._start_unit()

    @property
    def fallbacks(self) -> str:
        """How many records took another way to their ids than the usual one, in words."""
        return self._builder.exchanges.fallbacks

    @property
    def num_planned(self) -> int:
        """Records in units, those of earlier passes included."""
        return self._num_planned

    def run(self, raw_records: Iterable[RawRecord], on_progress: Callable[[int], None]) -> PlanTotals:
        """Plan all records. Raises TooManyRejectsError, also in the middle of a long input."""
        for raw in raw_records:
            self._num_records += 1
            if (raw.file, raw.line) != self._place:
                self._place = raw.file, raw.line
                self.num_whole += 1
            self._take(raw)
            if self._num_records % CHECK_EVERY_RECORDS == 0:
                self._check_rejects()
                on_progress(self._num_records)
        self._check_rejects()
        self._close_unit()
        if self._writer is not None:
            self._writer.flush()
        on_progress(self._num_records)
        return PlanTotals(
            num_records=self._num_records,
            num_planned=self._num_planned,
            num_units=self._num_units,
            num_tokens=self._num_tokens,
            num_labels=self._num_labels,
            rejects_by_kind=dict(self.rejects.by_kind),
            num_changed=self._num_changed,
            num_unproven=self._num_unproven,
            num_deleted=self._num_deleted,
        )

    def _take(self, raw: RawRecord) -> None:
        if raw.record is None:
            self._reject(raw, None, raw.error or "it cannot be read", "invalid_record")
            return
        try:
            name = id_of(raw, self._input_info)
        except ValueError as error:
            self._reject(raw, None, str(error), "bad_id")
            return
        has_ids = "id" in self._input_info.fields
        if not has_ids:
            name = self._name_among_equals(raw, name)
            if name is None:
                return
        id_digest = digest_of(name)
        parent = parent_id(name) if raw.part else name
        if id_digest in self._known.deleted or digest_of(parent) in self._known.deleted:
            self._num_deleted += 1
            return
        proof = proof_of(id_digest, raw.record, self._input_info)
        if id_digest in self._known.ids and (not has_ids or self._seen.add(id_digest)):
            self._meet_again(raw, name, id_digest, proof)
            return
        try:
            prompt = self._builder.build(name, raw.content)
        except BadRecordError as error:
            self._reject(raw, name, error.reason, error.kind)
            return
        if has_ids and not self._seen.add(id_digest):
            reason = (
                f"the id {name!r} stands earlier in the input; ids must differ: correct it, remove the copy, "
                'or choose another field with input.id ("" makes ids from the content)'
            )
            self._reject(raw, name, reason, "duplicate_id")
            return
        prompt_digest = (
            content_digest(prompt.prompt_token_ids.tobytes()) if self._drop_repeated_prompts else b""
        )
        if prompt_digest and not self._is_new_prompt(prompt_digest):
            reason = (
                "its prompt is, token for token, an earlier record's; "
                'filters.duplicate_prompts = "keep" labels it'
            )
            self._reject(raw, name, reason, "duplicate_prompt")
            return
        self._plan(PlannedRecord(prompt, raw.file, raw.line), id_digest, prompt_digest, proof)

    def _name_among_equals(self, raw: RawRecord, name: str) -> str | None:
        """The id of a record whose input gives none: its content's, with a number where an earlier record is
        its equal. None where such a record is dropped."""
        id_digest = digest_of(name)
        if self._seen.add(id_digest):
            return name
        if self._job.filters.duplicate_prompts == "drop":
            reason = 'an earlier record is its equal; filters.duplicate_prompts = "keep" labels it'
            self._reject(raw, name, reason, "duplicate_prompt")
            return None
        self._repeats[id_digest] += 1
        name = repeated_id(name, self._repeats[id_digest] + 1)
        self._seen.add(digest_of(name))
        self.num_repeats += 1
        return name

    def _meet_again(self, raw: RawRecord, name: str, id_digest: bytes, proof: bytes) -> None:
        """A record that an earlier pass planned: is it still the same?"""
        if proof in self._known.proofs:
            return
        if id_digest in self._known.unproven:
            self._num_unproven += 1
            return
        self._num_changed += 1
        if not self._keep_changed or raw.record is None:
            return
        try:
            prompt = self._builder.build(name, raw.content)
        except BadRecordError as error:
            self._reject(raw, name, f"{error.reason} (its former labels stay)", error.kind)
            return
        self.changed[id_digest] = ChangedRecord(PlannedRecord(prompt, raw.file, raw.line), proof)

    def _is_new_prompt(self, prompt_digest: bytes) -> bool:
        return prompt_digest not in self._known.prompts and self._seen_prompts.add(prompt_digest)

    def _plan(self, record: PlannedRecord, id_digest: bytes, prompt_digest: bytes, proof: bytes) -> None:
        num_tokens = self._work_of(record.prompt)
        output = self._job.output
        if self._unit and (
            len(self._unit) >= output.unit_size or self._unit_tokens + num_tokens > output.unit_tokens
        ):
            self._close_unit()
        self._unit.append(record)
        self._unit_tokens += num_tokens
        self._unit_ids.append(id_digest)
        self._unit_prompts.append(prompt_digest)
        self._unit_proofs.append(proof)
        self._num_planned += 1
        self.lengths[1 << max(record.prompt.num_tokens - 1, 0).bit_length()] += 1
        self._num_tokens += record.prompt.num_tokens

    def _close_unit(self) -> None:
        if not self._unit:
            return
        num_labels = sum(self._labels_of(record.prompt) for record in self._unit)
        if self._writer is not None:
            unit_id = unit_id_of([record.prompt.record_id for record in self._unit])
            self._writer.add(
                unit_id,
                self._unit,
                num_labels,
                b"".join(self._unit_ids),
                b"".join(self._unit_prompts),
                b"".join(self._unit_proofs),
            )
        self._num_units += 1
        self._num_labels += num_labels
        self._start_unit()

    def _start_unit(self) -> None:
        self._unit: list[PlannedRecord] = []
        self._unit_ids: list[bytes] = []
        self._unit_prompts: list[bytes] = []
        self._unit_proofs: list[bytes] = []
        self._unit_tokens = 0

    def _work_of(self, prompt: TokenizedPrompt) -> int:
        """Tokens that the record's sequences may have."""
        written = self._job.sampling.max_tokens if self._job.labels.mode == "generate" else 0
        return (prompt.num_tokens + written) * self._job.labels_per_record

    def _labels_of(self, prompt: TokenizedPrompt) -> int:
        per_sequence = max(prompt.num_tokens - prompt.label_start, 0)
        if self._job.labels.mode == "generate":
            per_sequence += self._job.sampling.max_tokens
        return per_sequence * self._job.labels_per_record

    def _reject(self, raw: RawRecord, name: str | None, reason: str, kind: str) -> None:
        self.rejects.add(Reject(raw.file, raw.line, name, reason, kind))

    def _check_rejects(self) -> None:
        limits = self._job.limits
        check_reject_share(
            self._num_records,
            self.rejects.by_kind,
            self.rejects.examples,
            max_share=limits.max_reject_share,
            min_records=limits.min_records,
        )


def check_reject_share(
    num_records: int,
    rejects: Mapping[str, int],
    examples: Sequence[Reject],
    *,
    max_share: float,
    min_records: int,
    remedy: str = "Correct the input or input.fields",
) -> None:
    """Raise TooManyRejectsError if more than the allowed share of the records is rejected.

    Repeated prompts that the job drops by name do not count.
    """
    num_rejects = sum(count for kind, count in rejects.items() if kind != "duplicate_prompt")
    if num_rejects <= max_share * max(num_records, min_records):
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(rejects).most_common())
    shown = "; ".join(f"{reject.file}:{reject.line}: {reject.reason}" for reject in examples)
    example = f" For example {shown.removesuffix('.')}." if shown else ""
    raise TooManyRejectsError(
        f"{num_rejects} of {num_records} records cannot be labeled ({kinds}), more than "
        f"limits.max_reject_share = {max_share:g} allows.{example} {remedy}, or raise "
        "limits.max_reject_share"
    )
