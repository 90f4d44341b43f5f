"""The pool of actors on a real Ray, where an actor cannot even be made."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import ray

from labeler.config.loading import load_job
from labeler.driver.actors.pool import ActorPool
from labeler.driver.actors.pool_events import PoolEvent, ReplicaGivenUp, StartFailed
from labeler.driver.progress import one_line
from labeler.driver.run import RunOptions, run
from labeler.job.status import read_status
from labeler.on_ray.runtime import ray_for
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.actor import Worker
from logitstore.common.exit_status import ExitStatus
from logitstore.job_objects import JobStatus
from tests.labeler.jobs import overrides_for, write_records


class Dying(Worker):
    def __init__(self, *_: object, **__: object) -> None:
        os.kill(os.getpid(), 9)


class Unmakeable(Worker):
    def __init__(self, *_: object, **__: object) -> None:
        raise ImportError("No module named 'labeler'")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_actor_that_cannot_be_made_is_given_up_with_the_reason(tmp_path: Path) -> None:
    job = load_job(None, overrides_for(tmp_path, "workers.replicas=1", "workers.restarts=1"), {})
    with ray_for(job):
        pool = ActorPool(job, ResponseEnds(), ray.remote(Unmakeable))
        found: list[PoolEvent] = []
        deadline = time.monotonic() + 200
        while pool.num_given_up == 0:
            assert time.monotonic() < deadline, "it is tried again and again"
            found += pool.poll(0.2)
        pool.close()
    tried, given_up = found
    assert isinstance(tried, StartFailed)
    assert isinstance(given_up, ReplicaGivenUp)
    assert (tried.worker_id, given_up.worker_id, pool.num_given_up) == ("worker-0.0", "worker-0.1", 1)
    made = r"it could not be made on [\d.]+: ImportError: No module named 'labeler'; the interpreter"
    for event in (tried, given_up):
        assert re.match(made, event.reason), event.reason


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_dies_leaves_standard_output_to_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray tells of it there, where `--json` prints the status."""
    job = load_job(None, overrides_for(tmp_path, "workers.replicas=1", "workers.restarts=0"), {})
    with ray_for(job):
        pool = ActorPool(job, ResponseEnds(), ray.remote(Dying))
        deadline, err = time.monotonic() + 200, ""
        while "A worker died or was killed" not in err:
            assert time.monotonic() < deadline, err
            pool.poll(0.2)
            out, more = capsys.readouterr()
            assert out == ""
            err += more
        pool.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wait_for_room_is_in_the_status_and_ends_in_set_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster without the resource the job looked as if it worked, and did so for ever."""
    monkeypatch.setattr("labeler.driver.actors.room_watch.ROOM_PATIENCE_SEC", 0.5)
    write_records(tmp_path / "in.jsonl", 8)
    wanted = ("workers.replicas=1", "workers.resources={nowhere=1}", "limits.wait_sec=4")
    job = load_job(None, overrides_for(tmp_path, *wanted), {})
    seen: list[JobStatus] = []
    monkeypatch.setattr("labeler.driver.progress.ProgressView.show", lambda view, status: seen.append(status))
    exit_status, status = run(job, RunOptions(quiet=True))
    assert (exit_status, status.state) == (ExitStatus.FAILED, "failed")
    assert "limits.wait_sec = 4: 1 of 1 replicas wait for room" in status.message
    waiting = [one for one in seen if one.is_active and "wait for room" in one.message]
    assert waiting
    assert "1 nowhere" in one_line(waiting[-1])
    assert read_status(str(tmp_path / "store")).message == status.message
