"""A field with the records' own ids, where nobody named one.

It is taken where every record has an id in it and no two the same, for which the whole input is read once:
after that the store says whether its records have ids of their own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labeler.config.loading import describe_difference, input_place
from labeler.planning.digests import DigestSet
from labeler.planning.plan_objects import SETTING_OF_EVERY_HEAD, load_object
from logitstore.errors import StoreError
from logitstore.inputs.identity import digest_of, record_id
from logitstore.inputs.reading import iter_records
from logitstore.job_objects import PLAN_HEAD_NAME
from logitstore.manifest.fields import InputInfo
from logitstore.objects.opening import Objects

ID_FIELDS = ("custom_id", "id")
"""Names of fields with ids, OpenAI's batch files' first."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A store that was planned from this input before."""

    id_field: str | None
    """Its `input.id`; None where it made ids of the content."""


@dataclass(frozen=True, slots=True)
class _Count:
    """What a field has of the records' ids."""

    num_records: int
    num_without: int
    num_repeated: int
    example: str
    """The first id that stands twice, "" for none."""


def find_id(
    section: Mapping[str, Any], output: object, records: list[dict[str, Any]]
) -> tuple[str | None, str]:
    """The field of the ids, None for hashes of the content, and what is said of it, "" for nothing.

    `section` is the job's `[input]`, `output` its `[output]`, `records` the first of the input. Raises
    StoreError, OSError where the input cannot be read.
    """
    names = [name for name in ID_FIELDS if any(name in record for record in records)]
    if not names:
        return None, ""
    begun = _begun_store(section, output)
    if begun is not None:
        if begun.id_field is None:
            return None, f"; ids are made of the content as in the store, not taken from {names[0]!r}"
        return begun.id_field, f', input.id = "{begun.id_field}" as in the store'
    said = ""
    for name in names:
        count = _count(section, name)
        if not count.num_without and not count.num_repeated:
            return name, f', input.id = "{name}"'
        said += f"; {name!r} is not taken for an id: {_in_words(count)}; so ids are made of the content"
    return None, said


def _begun_store(section: Mapping[str, Any], output: object) -> _Begun | None:
    """The job's store, if it was planned from this input."""
    place = output.get("uri") if isinstance(output, Mapping) else None
    if not isinstance(output, Mapping) or not isinstance(place, str) or not place:
        return None
    options = output.get("storage_options")
    try:
        objects = Objects(os.path.expanduser(place), options if isinstance(options, Mapping) else None)
        if not objects.exists(PLAN_HEAD_NAME):
            return None
        head = load_object(objects, PLAN_HEAD_NAME)
    except (StoreError, OSError, ValueError):
        return None  # told in its own words by the check of the output
    here = {SETTING_OF_EVERY_HEAD: input_place(section["uri"], section.get("known_as") or "")}
    there = {SETTING_OF_EVERY_HEAD: head[SETTING_OF_EVERY_HEAD]}
    return None if describe_difference(there, here) else _Begun(head.get("input.id"))


def _count(section: Mapping[str, Any], name: str) -> _Count:
    options, limit = section.get("storage_options"), section.get("limit")
    info = InputInfo(uri="", kind="prompt", fields={"id": name})
    found = iter_records(section["uri"], storage_options=options if isinstance(options, Mapping) else None)
    seen = DigestSet()
    num_records = num_without = num_repeated = 0
    example = ""
    for raw in itertools.islice(found, limit if isinstance(limit, int) and limit > 0 else None):
        if raw.record is None:
            continue
        num_records += 1
        try:
            own = record_id(raw.record, info)
        except ValueError:
            num_without += 1
            continue
        if not seen.add(digest_of(own)):
            num_repeated += 1
            example = example or own
    return _Count(num_records, num_without, num_repeated, example)


def _in_words(count: _Count) -> str:
    parts = []
    if count.num_without:
        parts.append(f"{count.num_without:,} of {count.num_records:,} records have no id there")
    if count.num_repeated:
        parts.append(
            f"{count.num_repeated:,} of {count.num_records:,} records repeat one, such as "
            f"{count.example!r:.60}"
        )
    return " and ".join(parts)
