"""A labeling job's status, runs and bills, taken from the JSON that some version wrote."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast, get_args

from logitstore.errors import CorruptManifestError
from logitstore.job_objects import STATUS_NAME, Bill, Cost, Device, JobState, JobStatus, RunRecord, WorkerView
from logitstore.manifest import strict_json

MAX_JOB_OBJECT_BYTES = 16 * 2**20
"""Most bytes of the status or a run: a line for each worker, at most ten causes in words."""


def parse_status(content: bytes) -> JobStatus:
    """The status of a `status.json`.

    A field that is not there has its default and one that is not known is left out, so that other versions'
    statuses can be read. Raises CorruptManifestError for what is no status.
    """
    return _parsed(JobStatus, content, STATUS_NAME, "the next status of its job replaces it")


def parse_run(content: bytes, name: str) -> RunRecord:
    """One run of those below `RUNS_PREFIX`. Raises CorruptManifestError for what is none."""

    def check(run: RunRecord) -> None:
        if min(run.device_sec, run.num_tokens, run.compute) < 0:
            raise ValueError(f"{name}: seconds, tokens and money cannot be negative")

    return _parsed(RunRecord, content, name, "remove it, and its run is not counted", check)


def parse_bill(content: bytes, name: str) -> Bill:
    """One bill of those below `BILLS_PREFIX`. Raises CorruptManifestError for what is none."""

    def check(bill: Bill) -> None:
        counts = (bill.input_tokens, bill.output_tokens, bill.num_answers, bill.num_lost)
        if min(*counts, bill.num_on_the_way, bill.input_price, bill.output_price) < 0:
            raise ValueError(f"{name}: tokens, answers and prices cannot be negative")

    return _parsed(Bill, content, name, "remove it, and what it says is not counted", check)


_Record = TypeVar("_Record", JobStatus, WorkerView, Cost, RunRecord, Bill)


def _parsed(
    kind: type[_Record],
    content: bytes,
    name: str,
    remedy: str,
    check: Callable[[_Record], None] = lambda _: None,
) -> _Record:
    try:
        record = _record(kind, _object_of(content, name), name)
        check(record)
        return record
    except ValueError as error:
        raise CorruptManifestError(f"{name} of the store is not readable ({error}); {remedy}") from None


def _object_of(content: bytes, name: str) -> dict[str, Any]:
    """Finite numbers, no key twice, text that is Unicode; see `strict_json`. Raises CorruptManifestError."""
    return strict_json.parse_object(content, what=name, max_bytes=MAX_JOB_OBJECT_BYTES)


def _record(kind: type[_Record], raw: object, where: str) -> _Record:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is {raw!r:.40}, not an object")
    values = {}
    for known in fields(kind):
        if known.name in raw:
            values[known.name] = _PARSERS[cast("str", known.type)](raw[known.name], f"{where}: {known.name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _of(*kinds: type) -> Callable[[object, str], Any]:
    def parse(raw: object, where: str) -> Any:
        if not isinstance(raw, kinds) or isinstance(raw, bool):
            raise ValueError(f"{where} = {raw!r:.40} is not of type {kinds[0].__name__}")
        if isinstance(raw, int) and abs(raw) > strict_json.MAX_INTEGER:
            raise ValueError(f"{where} does not fit 63 bits")
        if isinstance(raw, float) and not math.isfinite(raw):
            raise ValueError(f"{where} is not finite")
        return raw

    return parse


def _one_of(known: tuple[str, ...]) -> Callable[[object, str], Any]:
    def parse(raw: object, where: str) -> Any:
        if raw not in known:
            raise ValueError(f"{where} = {raw!r:.40} is none of {', '.join(known)}")
        return raw

    return parse


def _counts(raw: object, where: str) -> dict[str, int]:
    items = _of(dict)(raw, where).items()
    return {_of(str)(name, where): _of(int)(count, where) for name, count in items}


_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "str": _of(str),
    "int": _of(int),
    "float": _of(float, int),
    "str | None": _of(str, type(None)),
    "float | None": _of(float, int, type(None)),
    "JobState": _one_of(get_args(JobState)),
    "Device": _one_of(get_args(Device)),
    "Mapping[str, int]": _counts,
    "tuple[str, ...]": lambda raw, where: tuple(_of(str)(text, where) for text in _of(list)(raw, where)),
    "tuple[WorkerView, ...]": lambda raw, where: tuple(
        _record(WorkerView, worker, where) for worker in _of(list)(raw, where)
    ),
    "Cost | None": lambda raw, where: None if raw is None else _record(Cost, raw, where),
}
"""How a field of a type, as it is written in `job_objects`, is taken from JSON."""
