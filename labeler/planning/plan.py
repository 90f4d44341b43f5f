"""The unit plan of a store: which records make which work unit, decided once and only ever added to.

Below `plan/` of the store:

- `head.json` holds the settings that labels depend on, and what the prompts were made from besides them; a
  job with others is refused.
- `segments/000000.json`, ... list up to `SEGMENT_UNITS` units each and name the data object beside them that
  holds the units' tokenised records (`units.py`). Written with put-if-absent, data first.
- `input.json` describes the last complete pass over the input: its fingerprint, totals and rejects. While
  the input's fingerprint stays the same a resumed job does not read the input again; when it changed,
  records that are not planned yet make new units after the old ones.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from labeler.config.loading import describe_difference
from labeler.errors import OtherSettingsError, PlanTakenError
from labeler.patience import persistently
from labeler.planning.digests import DigestSet
from labeler.planning.plan_objects import (
    MADE_FROM_KEY,
    decode_part,
    load_object,
    load_rejects,
    segment_names,
)
from labeler.planning.provenance import Provenance, describe_change
from labeler.planning.units import decode_records, encode_records
from labeler.records import PlannedRecord, WorkUnit
from logitstore.index.deletions import deleted_records
from logitstore.job_objects import (
    PLAN_HEAD_NAME,
    PLAN_INPUT_NAME,
    PLAN_PREFIX,
    PLAN_SEGMENTS_PREFIX,
)
from logitstore.objects.opening import Objects
from logitstore.records import Reject

REJECTS_PREFIX = f"{PLAN_PREFIX}rejects-"
SEGMENT_UNITS = 1024
SEGMENT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """What one complete pass over the input found, units planned by earlier passes included."""

    num_records: int
    """Records read."""
    num_planned: int
    """Records in the units of the plan."""
    num_units: int
    num_tokens: int
    """Tokens of prompts and given responses in the units."""
    num_labels: int
    """Label rows that the units will have; an upper bound where the teacher writes responses."""
    rejects_by_kind: dict[str, int] = field(default_factory=dict)
    num_changed: int = 0
    """Records whose content is not the one that was planned, and may be labeled, under their id."""
    num_unproven: int = 0
    """Records that a version planned which kept no proof of their content."""
    num_deleted: int = 0
    """Records of the input that were taken down (`penumbra store delete`) and so are in no unit."""

    @property
    def num_rejects(self) -> int:
        return sum(self.rejects_by_kind.values())


@dataclass(slots=True)
class KnownRecords:
    """What earlier passes planned."""

    ids: DigestSet = field(default_factory=DigestSet)
    prompts: DigestSet = field(default_factory=DigestSet)
    proofs: DigestSet = field(default_factory=DigestSet)
    """See `logitstore.inputs.proofs`."""
    unproven: DigestSet = field(default_factory=DigestSet)
    """Digests of the ids that an earlier version planned without a proof of the content."""
    deleted: DigestSet = field(default_factory=DigestSet)
    """Digests of the ids of records that were taken down (`penumbra store delete`): they get no labels
    again."""
    num_planned: int = 0
    num_units: int = 0
    num_tokens: int = 0
    num_labels: int = 0


class Plan:
    """The plan of the store below `objects`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def claim(
        self, identity: Mapping[str, Any], made_from: Provenance, *, has_manifest: bool, num_labeled: int
    ) -> str:
        """Make this the plan of a job with these settings, whose prompts are made from these things.

        A plan for others is refused with OtherSettingsError if anything was labeled by it, and thrown away
        if not: returns what changed then, in words, else "". Settings are fixed by the manifest already.
        """
        content = json.dumps({**identity, MADE_FROM_KEY: made_from}, sort_keys=True).encode()
        if self._objects.put_if_absent(PLAN_HEAD_NAME, content):
            return ""
        stored, changes = self._compared(identity, made_from, has_manifest, num_labeled)
        if changes:
            self.discard()
        if json.loads(content) != stored:
            self._objects.put(PLAN_HEAD_NAME, content)
        return "; ".join(changes)

    def check(
        self, identity: Mapping[str, Any], made_from: Provenance, *, has_manifest: bool, num_labeled: int
    ) -> str:
        """What `claim` would return, or its OtherSettingsError; writes nothing."""
        if not self._objects.exists(PLAN_HEAD_NAME):
            return ""
        return "; ".join(self._compared(identity, made_from, has_manifest, num_labeled)[1])

    def _compared(
        self, identity: Mapping[str, Any], made_from: Provenance, has_manifest: bool, num_labeled: int
    ) -> tuple[dict[str, Any], list[str]]:
        """The head of the stored plan, and what it says otherwise. Raises OtherSettingsError."""
        stored = load_object(self._objects, PLAN_HEAD_NAME)
        # A plan of an earlier version does not say what it was made from: from now on it does.
        stored_from = stored.pop(MADE_FROM_KEY, made_from)
        settings = describe_difference(stored, json.loads(json.dumps(identity)))
        if settings and has_manifest:
            raise OtherSettingsError(
                f"the store at {self._objects.uri} was labeled with other settings: {'; '.join(settings)}. "
                "All labels of a store are made alike: restore these settings, or choose another output.uri"
            )
        changes = describe_change(stored_from, made_from)
        if changes and num_labeled:
            raise OtherSettingsError(
                f"the {num_labeled:,} units labeled in the store at {self._objects.uri} have prompts made "
                f"otherwise than now: {'; '.join(changes)}. All labels of a store are made alike: restore "
                "what is named here as it was, or choose another output.uri"
            )
        return {**stored, MADE_FROM_KEY: stored_from}, settings + changes

    def discard(self) -> None:
        """Forget everything planned."""
        self._objects.delete_many(self._objects.list(PLAN_PREFIX))

    def is_current(self, fingerprint: str) -> bool:
        """Whether the plan holds all of the input with this fingerprint."""
        record = self._input_record()
        return record is not None and record["fingerprint"] == fingerprint

    def totals(self) -> PlanTotals | None:
        """The totals of the last complete pass; None if there was none."""
        record = self._input_record()
        if record is None:
            return None
        return decode_part(self._objects, PlanTotals, record["totals"], what=f"{PLAN_INPUT_NAME}.totals")

    def rejects(self) -> Iterator[Reject]:
        """Records of the last complete pass that are in no unit."""
        record = self._input_record()
        if record is not None and record["rejects"]:
            yield from load_rejects(self._objects, record["rejects"])

    def units(self, retry_sec: float = 0.0) -> Iterator[WorkUnit]:
        """All units in order, one segment in memory at a time.

        Storage that fails is tried again for `retry_sec`: an iterator that has raised has no more units.
        """
        for name in persistently(lambda: segment_names(self._objects), retry_sec):
            segment = persistently(lambda name=name: load_object(self._objects, name), retry_sec)
            for place, (unit_id, offset, num_bytes, num_records, num_tokens) in enumerate(segment["units"]):
                yield WorkUnit(
                    unit_id=unit_id,
                    unit_index=segment["first_unit_index"] + place,
                    segment=segment["data"],
                    offset=offset,
                    num_bytes=num_bytes,
                    num_records=num_records,
                    num_tokens=num_tokens,
                )

    def known(self, *, anew: bool = False) -> KnownRecords:
        """What the segments hold, for a pass that adds to them; with `anew` for one in place of them."""
        known = KnownRecords()
        known.deleted.add_many(deleted_records(self._objects))
        for name in () if anew else segment_names(self._objects):
            segment = load_object(self._objects, name)
            targets = [(known.ids, "ids"), (known.prompts, "prompts")]
            targets.append((known.proofs, "proofs") if "proofs" in segment else (known.unproven, "ids"))
            for target, part in targets:
                start, end = segment[part]
                target.add_many(self._objects.get_range(segment["data"], start, end))
            known.num_units += len(segment["units"])
            known.num_planned += sum(unit[3] for unit in segment["units"])
            known.num_tokens += sum(unit[4] for unit in segment["units"])
            known.num_labels += segment["num_labels"]
        return known

    def finish_pass(self, fingerprint: str, totals: PlanTotals, rejects: bytes) -> None:
        """Record that the whole input is planned. `rejects` is JSON lines, in place of those of earlier
        passes."""
        name = f"{REJECTS_PREFIX}{secrets.token_hex(4)}.jsonl" if rejects else ""
        if rejects:
            self._objects.put(name, rejects)
        record = {"fingerprint": fingerprint, "totals": asdict(totals), "rejects": name}
        self._objects.put(PLAN_INPUT_NAME, json.dumps(record).encode())
        earlier = (one for one in self._objects.list(PLAN_PREFIX) if one.startswith(REJECTS_PREFIX))
        self._objects.delete_many(one for one in earlier if one != name)

    def _input_record(self) -> dict[str, Any] | None:
        return load_object(self._objects, PLAN_INPUT_NAME) if self._objects.exists(PLAN_INPUT_NAME) else None


class SegmentWriter:
    """Appends units to a plan, a segment at a time."""

    def __init__(self, objects: Objects, known: KnownRecords) -> None:
        self._objects = objects
        self._next_unit_index = known.num_units
        names = [name for name in objects.list(PLAN_SEGMENTS_PREFIX) if name.endswith(".json")]
        self._next_segment = len(names)
        self._start_segment()

    def add(
        self,
        unit_id: str,
        records: list[PlannedRecord],
        num_labels: int,
        ids: bytes,
        prompts: bytes,
        proofs: bytes,
    ) -> None:
        """`ids` and `prompts` are the digests of the records' ids and (where a filter asks) prompts;
        `proofs` those of ids and content."""
        content = encode_records(records)
        num_tokens = sum(record.prompt.num_tokens for record in records)
        self._units.append((unit_id, self._num_bytes, len(content), len(records), num_tokens))
        self._parts.append(content)
        self._num_bytes += len(content)
        self._num_labels += num_labels
        self._ids.append(ids)
        self._prompts.append(prompts)
        self._proofs.append(proofs)
        if len(self._units) >= SEGMENT_UNITS or self._num_bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the segment begun. Raises PlanTakenError if another driver wrote it meanwhile."""
        if not self._units:
            return
        ids, prompts, proofs = b"".join(self._ids), b"".join(self._prompts), b"".join(self._proofs)
        ids_end = self._num_bytes + len(ids)
        prompts_end = ids_end + len(prompts)
        number = f"{self._next_segment:06d}"
        data_name = f"{PLAN_SEGMENTS_PREFIX}{number}-{secrets.token_hex(4)}.units"
        self._objects.put(data_name, b"".join([*self._parts, ids, prompts, proofs]))
        segment = {
            "data": data_name,
            "first_unit_index": self._next_unit_index,
            "num_labels": self._num_labels,
            "ids": [self._num_bytes, ids_end],
            "prompts": [ids_end, prompts_end],
            "proofs": [prompts_end, prompts_end + len(proofs)],
            "units": self._units,
        }
        name = f"{PLAN_SEGMENTS_PREFIX}{number}.json"
        content = json.dumps(segment).encode()
        if not self._objects.put_if_absent(name, content) and self._objects.get(name) != content:
            raise PlanTakenError(
                f"{name} of the store at {self._objects.uri} was written by another driver; run one job at a "
                "time on a store"
            )
        self._next_unit_index += len(self._units)
        self._next_segment += 1
        self._start_segment()

    def _start_segment(self) -> None:
        self._units: list[tuple[str, int, int, int, int]] = []
        self._parts: list[bytes] = []
        self._ids: list[bytes] = []
        self._prompts: list[bytes] = []
        self._proofs: list[bytes] = []
        self._num_bytes = 0
        self._num_labels = 0


def read_unit(objects: Objects, unit: WorkUnit) -> list[PlannedRecord]:
    """The tokenised records of a unit, in one ranged request."""
    return decode_records(objects.get_range(unit.segment, unit.offset, unit.offset + unit.num_bytes))
