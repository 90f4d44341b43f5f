"""Kill -9 of every part of a running job: afterwards each record has its labels exactly once.

Real processes, a real Ray cluster per job, and the stand-in teacher slowed down. Each test prints how long
the recovery took (`pytest -s`).
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import started, units_done, wait_for
from logitstore.store import LogitStore
from tests.labeler.jobs import (
    assert_exactly_once,
    events,
    held,
    is_alive,
    labeled_ids,
    let_go,
    overrides_for,
    run_job,
    runs,
    status_of,
    write_records,
)
from tests.labeler.whole_jobs.processes import ray_parts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
RECORDS = 120
SLOW_SEC = 0.0015
SLOWER_SEC = 0.005
"""Of each token: long enough for both workers to come, and another driver, before it is over."""


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path / "in.jsonl", RECORDS)
    return tmp_path


def both_are_ready(store: Path) -> bool:
    return len(events(store, "worker_ready")) == 2


def recovery_sec(store: Path, fault_at: float) -> float:
    """Seconds from the fault to the next worker that is ready."""
    from datetime import datetime

    ready = [datetime.fromisoformat(event["time"]).timestamp() for event in events(store, "worker_ready")]
    return min(moment - fault_at for moment in ready if moment > fault_at)


def test_killed_actors_are_replaced_while_a_second_driver_is_refused(folder):
    store = folder / "store"
    overrides = overrides_for(folder, *held(folder, SLOWER_SEC), "workers.driver_lease_sec=4")
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 3 and both_are_ready(store), job)
        first, second = job.actors()
        fault_at = time.time()
        os.kill(first, signal.SIGKILL)
        refused = run_job(overrides, "--quiet")
        assert refused.returncode == 5
        assert f"process {job.process.pid}" in refused.stderr
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: len(events(store, "worker_ready")) >= 4, job)
        let_go(folder)
        exit_status, output = job.finish()
    assert exit_status == 0, output
    print(f"recovered from a killed actor in {recovery_sec(store, fault_at):.1f} s")
    assert len(events(store, "engine_died")) == 2
    assert "2 engine_died" in output
    assert_exactly_once(folder, RECORDS)


def test_a_killed_driver_is_followed_by_another_with_the_same_command(folder):
    store = folder / "store"
    overrides = overrides_for(folder, *held(folder, SLOWER_SEC))
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 5 and both_are_ready(store), job)
        actors, raylets = job.actors(), ray_parts(job, "raylet")
        assert len(actors) == 2
        assert len(raylets) == 1
        job.kill()
        fault_at = time.time()
        status = status_of(store)
        assert status is not None
        assert status.state == "interrupted"
        assert 5 <= status.units_done < 30
        let_go(folder)
        result = run_job(overrides)
        assert result.returncode == 0, result.stderr
        print(
            f"the next driver had a worker {recovery_sec(store, fault_at):.1f} s after the first was killed"
        )
        deadline = time.monotonic() + 150
        while any(is_alive(process_id) for process_id in [*actors, *raylets]):
            assert time.monotonic() < deadline, "the killed driver's cluster lives on"
            time.sleep(0.1)
    first_run, second_run = runs(store)
    committed = {event["shard"]["unit_id"] for event in first_run if event["event"] == "committed"}
    leased_again = {event["unit"] for event in second_run if event["event"] == "leased"}
    assert committed
    assert not committed & leased_again, "nothing is labeled twice"
    assert_exactly_once(folder, RECORDS)


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_killed_part_of_ray_itself_costs_the_run_and_no_label(folder, part):
    """The cluster of a job on one machine has one node, whose death nothing in it survives for long."""
    store = folder / "store"
    overrides = overrides_for(folder, *held(folder, SLOW_SEC))
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 5, job)
        (process_id,) = ray_parts(job, part)
        os.kill(process_id, signal.SIGKILL)
        fault_at = time.monotonic()
        exit_status, output = job.finish()
        print(f"{part} killed: the run ended after {time.monotonic() - fault_at:.1f} s with {exit_status}")
    # Actors work on for some seconds without their raylet, which may be long enough for the rest.
    let_go(folder)
    if exit_status != 0:
        assert (exit_status, "run the same command again" in output) == (1, True), output
        result = run_job(overrides)
        assert result.returncode == 0, result.stderr
    assert_exactly_once(folder, RECORDS)


def test_sigterm_finishes_the_units_at_work_and_the_same_command_goes_on_with_more_replicas(folder):
    store = folder / "store"
    overrides = overrides_for(folder, *held(folder, SLOW_SEC))
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 2, job)
        stopped_at = time.monotonic()
        job.process.send_signal(signal.SIGTERM)
        exit_status, output = job.finish()
        took = time.monotonic() - stopped_at
    assert exit_status == 4, output
    print(f"drained in {took:.1f} s")
    assert "run the same command again" in output
    status = status_of(store)
    assert status is not None
    assert status.state == "stopped"
    assert 2 <= status.units_done < 30
    begun = {event["unit"] for event in events(store, "leased")}
    given_back = len(events(store, "gave_back"))
    assert status.units_done == len(begun) - given_back, "what the engines had begun is finished"
    let_go(folder)
    result = run_job([*overrides, "workers.replicas=3"])
    assert result.returncode == 0, result.stderr
    assert "3 replicas" in result.stderr
    assert_exactly_once(folder, RECORDS)


def test_a_record_that_kills_engines_is_found_and_the_rest_is_labeled(tmp_path):
    write_records(tmp_path / "in.jsonl", 24)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps({"uid": "poison", "prompt": "q", "response": "~"}) + "\n")
    write_records(tmp_path / "in.jsonl", 8, start=24)
    poison = ("teacher.fake.fatal_token_id=126", "output.unit_size=8")
    result = run_job(overrides_for(tmp_path, *poison))
    assert result.returncode == 0, result.stderr
    found = labeled_ids(tmp_path / "store")
    assert sorted(found, key=int) == [str(i) for i in range(32)]
    rejects = LogitStore.open(tmp_path / "store").rejects()
    assert [(reject.record_id, reject.line, reject.kind) for reject in rejects] == [
        ("poison", 25, "killed_engine")
    ]
    assert "fatal token 126" in rejects[0].reason
    logged = events(tmp_path / "store", "rejected")
    assert [(event["record_id"], event["kind"]) for event in logged] == [("poison", "killed_engine")]
    assert "1 killed_engine" in result.stdout
    deaths = len(events(tmp_path / "store", "engine_died"))
    print(f"a killer among 8 records cost {deaths} engines")
    assert deaths <= 7


def test_engines_that_never_load_end_the_job_with_the_reason(tmp_path):
    write_records(tmp_path / "in.jsonl", 8)
    result = run_job(
        overrides_for(
            tmp_path,
            "teacher.fake.load_sec=60",
            "workers.start_sec=1",
            "workers.restarts=1",
            "workers.replicas=1",
        )
    )
    assert result.returncode == 1
    assert "did not load within workers.start_sec = 1" in result.stderr
    assert "no replica is left" in result.stderr
