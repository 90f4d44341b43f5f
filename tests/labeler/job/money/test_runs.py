"""The cost of a store is that of all its runs, of each person and whatever became of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.__main__ import main
from labeler.job.driver_lease import acquire
from labeler.job.money.runs import RunWriter, store_cost
from labeler.job.person import person_here
from labeler.job.status_writer import StatusWriter
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import LEASE_NAME, RUNS_PREFIX, STATUS_NAME, Cost, JobState, JobStatus
from logitstore.objects.opening import Objects


def status(device_sec: float, minute: int = 0, state: JobState = "running", price: float = 2.0) -> JobStatus:
    cost = Cost("gpu", device_sec, 1000, 5_000_000, device_sec * price, 0.25, "EUR")
    return JobStatus(state, started=f"2026-11-28T10:{minute:02}:00+00:00", updated="later", cost=cost)


def one_run(objects: Objects, device_sec: float, minute: int, state: JobState) -> None:
    last = status(device_sec, minute, state)
    lease = acquire(objects, 30.0, lambda _: None)
    StatusWriter(objects, lease, RunWriter(objects, last.started)).close(last)
    lease.release()


def test_a_resumed_job_costs_what_all_its_runs_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = Objects(tmp_path)
    monkeypatch.setenv("PENUMBRA_OWNER", "ada")
    one_run(objects, 100.0, 1, "stopped")
    monkeypatch.setenv("PENUMBRA_OWNER", "bob")
    one_run(objects, 30.0, 2, "failed")
    one_run(objects, 70.0, 3, "finished")
    found = store_cost(str(tmp_path)).as_record()
    assert found["total"] == {"device_sec": {"gpu": 200.0}, "num_tokens": 3000, "compute": {"EUR": 400.0}}
    assert {name: one["device_sec"]["gpu"] for name, one in found["owners"].items()} == {
        "ada": 100,
        "bob": 100,
    }
    assert [(run["owner"], run["state"]) for run in found["runs"]] == [
        ("ada", "stopped"), ("bob", "failed"), ("bob", "finished"),
    ]  # fmt: skip
    assert (found["num_bytes"], found["storage_per_month"]) == (5_000_000, 0.25), "the bytes are there once"
    assert main(["cost", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("200 gpu seconds, 400.0000 EUR in 3 runs\n")
    assert "ada: 100 gpu seconds, 200.0000 EUR" in out
    assert main(["cost", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_killed_drivers_run_is_counted_up_to_its_last_minute(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    run = RunWriter(objects, "2026-11-28T10:00:00+00:00")
    run.put(status(0.0), 0.0)
    assert objects.list(RUNS_PREFIX) == [], "nothing before a device was held"
    for now_sec in range(0, 150, 10):
        run.put(status(10.0 + now_sec), float(now_sec))
    (found,) = store_cost(str(tmp_path)).runs
    assert (found.device_sec, found.state) == (130.0, "running")


def test_another_drivers_status_is_left_alone_and_the_run_is_counted(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    last = status(12.0, state="failed")
    lease = acquire(objects, 30.0, lambda _: None)
    objects.delete(LEASE_NAME)
    acquire(objects, 30.0, lambda _: None)
    StatusWriter(objects, lease, RunWriter(objects, last.started)).close(last)
    assert not objects.exists(STATUS_NAME)
    assert store_cost(str(tmp_path)).runs[0].device_sec == 12


def test_what_cannot_be_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = Objects(tmp_path)
    assert main(["cost", str(tmp_path)]) == 1
    assert "no run has held a device" in capsys.readouterr().err
    objects.put(STATUS_NAME, status(9.0).as_json().encode())
    with pytest.raises(CorruptManifestError, match="kept the cost of its last run alone: 9 gpu seconds"):
        store_cost(str(tmp_path))
    objects.put(f"{RUNS_PREFIX}a.json", b'{"owner": 3}')
    with pytest.raises(CorruptManifestError, match=r"logs/runs/a.json of the store is not readable"):
        store_cost(str(tmp_path))


def test_a_person_is_named_by_the_environment_or_by_user_and_host() -> None:
    assert person_here({"PENUMBRA_OWNER": "ada"}) == "ada"
    assert "@" in person_here({})
