"""A node that is low on memory, where Ray ends actors by errors that are not those of a dead actor."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
)

from labeler.config.loading import load_job
from labeler.driver.actors.pool import ActorPool
from labeler.driver.actors.pool_events import PoolEvent, WorkerDied
from labeler.errors import EngineDiedError
from labeler.on_ray.failure_causes import left_actor_alive
from labeler.on_ray.runtime import ray_for
from labeler.records import Lease, WorkUnit
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.actor import Worker
from tests.labeler.jobs import overrides_for

SPARE_BYTES = 3 * 2**29
CHUNK_BYTES = 2**26
MOST_BYTES = 8 * 2**30


class Eating(Worker):
    """Takes memory with each unit until it is ended."""

    def label_unit(self, lease: Lease):
        taken = []
        while len(taken) * CHUNK_BYTES < MOST_BYTES:
            taken.append(bytearray(b"x") * CHUNK_BYTES)
            time.sleep(0.01)
        return super().label_unit(lease)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_ray_ends_for_lack_of_memory_costs_no_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unit that it held counted as failed, and the next ones were leased to the dead actor and failed in
    turn: two workers spent 13 of the 20 failures in a row that end a job, within two seconds."""
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + SPARE_BYTES) / memory.total
    if share > 0.97:
        pytest.skip(f"{memory.available:,} bytes of memory are free, and the worker takes {SPARE_BYTES:,}")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{share:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    job = load_job(None, overrides_for(tmp_path, "workers.replicas=1", "workers.restarts=9"), {})
    events: list[PoolEvent] = []
    deadline = time.monotonic() + 200
    with ray_for(job):
        pool = ActorPool(job, ResponseEnds(), ray.remote(Eating))
        while not pool.ready_workers():
            assert time.monotonic() < deadline, events
            pool.poll(0.2)
        (worker_id,) = pool.ready_workers()
        for index in range(3):
            unit = WorkUnit(f"u{index}", index, "plan/segments/0.units", 0, 10, 8, 100)
            pool.submit(Lease(index, unit, worker_id))
        while not any(isinstance(event, WorkerDied) for event in events):
            assert time.monotonic() < deadline, events
            events += [event for event in pool.poll(0.2) if getattr(event, "worker_id", "") == worker_id]
        pool.close()
    (died,) = [event for event in events if type(event).__name__ in ("WorkerDied", "LeaseFailed")]
    assert isinstance(died, WorkerDied)
    assert (died.engine, died.culprits, pool._slots[0].deaths_in_row) == (False, (), 1)
    assert "whose memory was nearly full" in died.reason
    assert " used / " in died.reason


@pytest.mark.parametrize(
    ("error", "lives"),
    [
        (RayTaskError("label_unit", "", OSError("the bucket is full")).as_instanceof_cause(), True),
        (RayTaskError("label_unit", "", EngineDiedError("gone", ())).as_instanceof_cause(), False),
        (RayTaskError("label_unit", "", ActorDiedError()).as_instanceof_cause(), False),
        (GetTimeoutError("60 s"), True),
        (ObjectLostError("aa", None, ""), True),
        (ActorDiedError(), False),
        (OutOfMemoryError("full"), False),
        (NodeDiedError("gone"), False),
        (LocalRayletDiedError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_the_units_and_what_is_the_actors(error: Exception, lives: bool) -> None:
    assert left_actor_alive(error) == lives
