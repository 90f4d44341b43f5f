"""The JSON objects of a plan, read as strictly as the store's own: one line for what is not what it must be.

Fields that another version adds are left out here, and those that it lacks take their default, but for
settings of the head: what this version does not know may be what the labels depend on (`Plan.claim`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from logitstore.errors import CorruptManifestError
from logitstore.job_objects import PLAN_HEAD_NAME, PLAN_INPUT_NAME, PLAN_SEGMENTS_PREFIX
from logitstore.manifest import strict_json
from logitstore.objects.opening import Objects
from logitstore.records import Reject

MADE_FROM_KEY = "made_from"
"""Key of the plan's head: what the prompts were made from besides the settings; see `provenance.py`."""
SETTING_OF_EVERY_HEAD = "input.uri"
"""All versions wrote it; a head without it is no head."""
MAX_OBJECT_BYTES = 64 * 2**20
MAX_REJECT_BYTES = 2**20

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class InputRecord:
    """Fields of `input.json`."""

    fingerprint: str
    totals: dict[str, object]
    """See `PlanTotals`."""
    rejects: str
    """Name of the object that lists them, "" where there are none."""


@dataclass(frozen=True, slots=True)
class _Head:
    """What every `head.json` has besides the settings by their dotted names."""

    made_from: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Fields of a segment's JSON."""

    data: str
    first_unit_index: int
    num_labels: int
    ids: tuple[int, ...]
    prompts: tuple[int, ...]
    units: tuple[tuple[object, ...], ...]
    """For each unit: id, offset, bytes, records, tokens."""
    proofs: tuple[int, ...] = (0, 0)
    """Not written by versions that kept no proof of the content."""


def segment_names(objects: Objects) -> list[str]:
    """Names of the plan's segments, in order."""
    return [name for name in objects.list(PLAN_SEGMENTS_PREFIX) if name.endswith(".json")]


def load_object(objects: Objects, name: str) -> dict[str, Any]:
    """A JSON object of the plan. Raises CorruptManifestError, also where a field of it is not what it is."""
    try:
        value = strict_json.parse_object(objects.get(name), what=name, max_bytes=MAX_OBJECT_BYTES)
        if name == PLAN_HEAD_NAME:
            _check_head(value)
        elif name == PLAN_INPUT_NAME:
            strict_json.decode_known(InputRecord, value, what=name)
        else:
            _check_segment(strict_json.decode_known(_Segment, value, what=name), name)
        return value
    except CorruptManifestError as error:
        raise _with_remedy(error, objects) from None


def decode_part(objects: Objects, kind: type[Record], value: object, *, what: str) -> Record:
    """A part of an object of the plan, as `strict_json.decode_known`. Raises CorruptManifestError."""
    try:
        return strict_json.decode_known(kind, value, what=what)
    except CorruptManifestError as error:
        raise _with_remedy(error, objects) from None


def load_rejects(objects: Objects, name: str) -> Iterator[Reject]:
    """The rejects of the object that `input.json` names. Raises CorruptManifestError at a bad line."""
    for number, line in enumerate(objects.get(name).splitlines(), start=1):
        what = f"{name}:{number}"
        try:
            value = strict_json.parse_object(line, what=what, max_bytes=MAX_REJECT_BYTES)
            reject = strict_json.decode_known(Reject, value, what=what)
        except CorruptManifestError as error:
            raise _with_remedy(error, objects) from None
        yield reject


def _check_head(value: dict[str, Any]) -> None:
    if not isinstance(value.get(SETTING_OF_EVERY_HEAD), str):
        raise CorruptManifestError(
            f"{PLAN_HEAD_NAME} must have the setting {SETTING_OF_EVERY_HEAD!r}, a string, and has "
            f"{value.get(SETTING_OF_EVERY_HEAD)!r:.40}"
        )
    if MADE_FROM_KEY in value:
        strict_json.decode_known(_Head, value, what=PLAN_HEAD_NAME)


def _check_segment(segment: _Segment, name: str) -> None:
    for unit in segment.units:
        kinds = tuple(map(type, unit))
        if kinds != (str, int, int, int, int) or any(number < 0 for number in unit[1:]):  # type: ignore[operator]
            raise CorruptManifestError(
                f"{name}: the unit {list(unit)!r:.80} must be an id, an offset, bytes, records and tokens"
            )
    for part in ("ids", "prompts", "proofs"):
        numbers = getattr(segment, part)
        if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1]:
            raise CorruptManifestError(
                f"{name}: {part} = {list(numbers)!r:.80} must be two numbers in ascending order"
            )
    if min(segment.first_unit_index, segment.num_labels) < 0:
        raise CorruptManifestError(f"{name}: first_unit_index and num_labels must not be negative")


def _with_remedy(error: CorruptManifestError, objects: Objects) -> CorruptManifestError:
    return CorruptManifestError(
        f"{error} (at {objects.uri}). Restore it from a copy of the store; if nothing is labeled yet, delete "
        "the store's plan/ and start again"
    )
