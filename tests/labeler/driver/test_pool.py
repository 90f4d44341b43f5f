"""The pool of actors on a real Ray, where an actor cannot even be made."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray

from labeler.config.loading import load_job
from labeler.driver.pool import ActorPool
from labeler.driver.pool_events import PoolEvent, ReplicaGivenUp
from labeler.on_ray.runtime import ray_for
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.actor import Worker
from tests.labeler.jobs import overrides_for


class Unmakeable(Worker):
    def __init__(self, *_: object) -> None:
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
        while not found:
            assert time.monotonic() < deadline, "it is tried again and again"
            found += pool.poll(0.2)
        pool.close()
    (event,) = found
    assert isinstance(event, ReplicaGivenUp)
    assert (event.worker_id, pool.num_given_up) == ("worker-0.1", 1)
    assert event.reason == "it could not be made: ImportError: No module named 'labeler'"
