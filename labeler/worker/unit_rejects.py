"""Why records of a unit have no labels, as rejects."""

from __future__ import annotations

from labeler.errors import PromptError
from labeler.records import Lease, PlannedRecord
from logitstore.records import LabeledSequence, Reject


def refused(errors: list[PromptError], planned: list[PlannedRecord]) -> list[Reject]:
    """Those that the engine refused."""
    by_id = {record.prompt.record_id: record for record in planned}
    rejects: list[Reject] = []
    for error in errors:
        record = by_id[error.record_id]
        rejects.append(Reject(record.file, record.line, error.record_id, error.reason, error.kind))
    return rejects


def killers(planned: list[PlannedRecord], lease: Lease) -> list[Reject]:
    """Those that kill engines."""
    rejects: list[Reject] = []
    for position, reason in lease.skip:
        record = planned[position]
        rejects.append(Reject(record.file, record.line, record.prompt.record_id, reason, "killed_engine"))
    return rejects


def dropped(
    responses: list[tuple[LabeledSequence, str, str]], planned: list[PlannedRecord], num_samples: int
) -> list[Reject]:
    """Those of responses that filters drop, each with its kind and reason."""
    by_id = {record.prompt.record_id: record for record in planned}
    rejects: list[Reject] = []
    for sequence, kind, reason in responses:
        record = by_id[sequence.record_id]
        which = f"response {sequence.sample_index + 1} of {num_samples}: " if num_samples > 1 else ""
        rejects.append(Reject(record.file, record.line, sequence.record_id, which + reason, f"filter_{kind}"))
    return rejects
