"""Who is deleted in these tests, and what is left of them."""

from __future__ import annotations

import numpy as np

from labeler.planning.plan import Plan, SegmentWriter, read_unit
from labeler.planning.units import unit_id_of
from labeler.records import PlannedRecord, TokenizedPrompt
from logitstore.inputs.identity import digest_of
from logitstore.store import LogitStore

NAMES = [f"person-{number:02}" for number in range(12)]
GONE = frozenset({"person-01", "person-04", "person-05", "person-08"})


def left(store: LogitStore) -> list[str]:
    return [sequence.record_id for sequence in store.iter_sequences(top_k=1)]


def make_plan(store: LogitStore) -> None:
    plan = Plan(store.objects)
    writer = SegmentWriter(store.objects, plan.known())
    for unit in range(4):
        names = NAMES[3 * unit : 3 * unit + 3]
        records = [
            PlannedRecord(TokenizedPrompt(name, np.arange(5, dtype=np.int32), None, 1), "in.jsonl", line)
            for line, name in enumerate(names)
        ]
        ids = b"".join(map(digest_of, names))
        writer.add(unit_id_of(names), records, 15, ids, b"", ids)
    writer.flush()


def holders(store: LogitStore, name: str) -> list[str]:
    """Objects in whose bytes, or in whose records of the plan, a record's id stands."""
    found = [one for one in store.objects.list() if name.encode() in store.objects.get(one)]
    planned = [
        record.prompt.record_id
        for unit in Plan(store.objects).units()
        for record in read_unit(store.objects, unit)
    ]
    return found + (["the plan"] if name in planned else [])
