"""What others read of a labeling job: its status survives JSON, and nonsense is refused with its place."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from logitstore.errors import CorruptManifestError
from logitstore.job_objects import Cost, JobStatus, WorkerView
from logitstore.job_parsing import parse_status

STATUS = JobStatus(
    state="running",
    started="2026-01-01T00:00:00+00:00",
    units_done=3,
    units_total=8,
    rejects_by_kind={"too_long": 2},
    tokens_per_second=12.5,
    seconds_left=3.0,
    workers=(WorkerView("w0", "node", "ready", "abc", 1), WorkerView("w1", "node", "starting")),
    causes=("engine_died: SIGKILL",),
    cost=Cost("gpu", 10.0, 5, 7, 1.5, 0.5, "EUR"),
)


def test_a_status_survives_json() -> None:
    assert parse_status(STATUS.as_json().encode()) == STATUS


def test_other_versions_statuses_are_read() -> None:
    record = STATUS.as_record() | {"of_a_later_version": {"x": 1}}
    del record["own_sec"], record["workers"]
    status = parse_status(json.dumps(record).encode())
    assert (status.units_done, status.own_sec, status.workers) == (3, 0.0, ())


def test_every_field_refuses_what_it_cannot_hold() -> None:
    for known in fields(JobStatus):
        broken = STATUS.as_record() | {known.name: [[]]}
        with pytest.raises(CorruptManifestError, match=known.name):
            parse_status(json.dumps(broken).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"{}", b"\xff", b'{"state": "asleep"}', b"[" * 100_000],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_status_is_refused_with_a_remedy(content: bytes) -> None:
    with pytest.raises(CorruptManifestError, match="next status of its job replaces it"):
        parse_status(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": [{"node": "n"}]},
        {"workers": {"name": "w"}},
        {"cost": {"device": "abacus"}},
        {"rejects_by_kind": {"a": "b"}},
        {"units_done": True},
    ],
    ids=str,
)
def test_a_wrong_part_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptManifestError, match=next(iter(changes))):
        parse_status(json.dumps(STATUS.as_record() | changes).encode())
