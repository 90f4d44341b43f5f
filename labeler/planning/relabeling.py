"""Records whose content changed since they were labeled: their units get what stands there now.

A unit keeps its id and place, since its records keep theirs. Its labels are un-committed first and its
records replaced then, so that a stop between the two leaves no changed record that counts as labeled. An
actor of an earlier driver may still label the former records: it commits only while the object that it read
them from is there, and what it committed before that object went is un-committed as well.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeler.planning.digests import DIGEST_BYTES
from labeler.planning.plan_objects import load_object, segment_names
from labeler.planning.units import decode_records, encode_records
from labeler.records import PlannedRecord
from logitstore.objects.opening import Objects


@dataclass(frozen=True, slots=True)
class ChangedRecord:
    """What stands in the input now for a record that was planned otherwise."""

    planned: PlannedRecord
    proof: bytes


Changed = Mapping[bytes, ChangedRecord]
"""By the digest of the record's id."""


def replace_changed(objects: Objects, changed: Changed, uncommit: Callable[[set[str]], set[str]]) -> int:
    """Put the changed records into their units; how many were.

    `uncommit` gets the ids of their units and returns those that have no labels now, which alone are
    replaced.
    """
    units = {unit_id for name in segment_names(objects) for unit_id in _units_of(objects, name, changed)}
    free = uncommit(units) if units else set()
    if not free:
        return 0
    num_replaced = sum(_replace_in(objects, name, changed, free) for name in segment_names(objects))
    uncommit(free)
    return num_replaced


def _units_of(objects: Objects, name: str, changed: Changed) -> set[str]:
    segment = load_object(objects, name)
    ids = _digests(objects.get_range(segment["data"], *segment["ids"]))
    return {
        unit[0] for unit, start in _starts(segment) if any(i in changed for i in ids[start : start + unit[3]])
    }


def _replace_in(objects: Objects, name: str, changed: Changed, free: set[str]) -> int:
    """Write the segment anew with what changed in its free units; how many records did."""
    segment = load_object(objects, name)
    ids = _digests(objects.get_range(segment["data"], *segment["ids"]))
    proofs = _digests(objects.get_range(segment["data"], *segment["proofs"]))
    content = objects.get_range(segment["data"], 0, segment["ids"][0])
    prompts = objects.get_range(segment["data"], *segment["prompts"])
    parts: list[bytes] = []
    units: list[list[Any]] = []
    num_replaced = num_bytes = 0
    for unit, start in _starts(segment):
        unit_id, offset, length, num_records, num_tokens = unit
        part = content[offset : offset + length]
        places = (
            [i for i in range(start, start + num_records) if ids[i] in changed] if unit_id in free else []
        )
        if places:
            records = decode_records(part)
            for place in places:
                records[place - start] = changed[ids[place]].planned
                proofs[place] = changed[ids[place]].proof
            part = encode_records(records)
            num_tokens = sum(record.prompt.num_tokens for record in records)
        units.append([unit_id, num_bytes, len(part), num_records, num_tokens])
        parts.append(part)
        num_bytes += len(part)
        num_replaced += len(places)
    if num_replaced:
        all_ids, all_proofs = b"".join(ids), b"".join(proofs)
        data_name = f"{name.removesuffix('.json')}-{secrets.token_hex(4)}.units"
        objects.put(data_name, b"".join([*parts, all_ids, prompts, all_proofs]))
        prompts_at = num_bytes + len(all_ids)
        proofs_at = prompts_at + len(prompts)
        changes = {
            "data": data_name,
            "ids": [num_bytes, prompts_at],
            "prompts": [prompts_at, proofs_at],
            "proofs": [proofs_at, proofs_at + len(all_proofs)],
            "units": units,
        }
        objects.put(name, json.dumps(segment | changes).encode())
        objects.delete_many([segment["data"]])
    return num_replaced


def _starts(segment: Mapping[str, Any]) -> list[tuple[list[Any], int]]:
    """Every unit of a segment, with the place of its first record among the segment's."""
    found, start = [], 0
    for unit in segment["units"]:
        found.append((unit, start))
        start += unit[3]
    return found


def _digests(content: bytes) -> list[bytes]:
    return [content[i : i + DIGEST_BYTES] for i in range(0, len(content), DIGEST_BYTES)]
