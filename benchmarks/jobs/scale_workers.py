"""How many workers one driver can feed: its scheduler alone, and a real job with the stand-in teacher."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.labels.labeled_store import run_job
from benchmarks.labels.labeled_times import read_store
from labeler.config.loading import (
    InputConfig,
    JobConfig,
    LabelsConfig,
    OutputConfig,
    TeacherConfig,
    WorkersConfig,
)
from labeler.config.teacher_settings import FakeTeacherConfig
from labeler.driver.scheduler import LeasePolicy, Scheduler
from labeler.records import WorkUnit

SECONDS_PER_TOKEN = 0.01
"""Slow enough that dozens of stand-ins share two cores and still only wait."""
UNIT_RECORDS = 2
UNITS_PER_WORKER = 6
TEXT = "One record of the measurement of many workers, number {:06d}."


def schedule(num_workers: int, num_units: int) -> float:
    """Units per second that the scheduler leases and settles for so many workers."""

    def units() -> Iterator[WorkUnit]:
        for index in range(num_units):
            yield WorkUnit(f"unit-{index}", index, "segment", 0, 1, 64, 16_384)

    scheduler = Scheduler(units(), lambda unit_id: False, LeasePolicy(leases_per_worker=2, lease_sec=300.0))
    workers = [f"worker-{index}" for index in range(num_workers)]
    for worker in workers:
        scheduler.add_worker(worker)
    done, started = 0, time.perf_counter()
    while done < num_units:
        for worker in workers:
            while scheduler.next_lease(worker, float(done)) is not None:
                pass
        for worker in workers:
            for lease in scheduler.leases_of(worker):
                done += scheduler.committed(lease.lease_id, float(done))
    return num_units / (time.perf_counter() - started)


def feed(num_workers: int, folder: Path) -> float:
    """Label rows per second of a job with so many actors on a Ray cluster of its own, while all work."""
    prompts = folder / f"prompts-{num_workers}.jsonl"
    records = range(num_workers * UNITS_PER_WORKER * UNIT_RECORDS)
    prompts.write_text("".join(f"{json.dumps({'text': TEXT.format(index)})}\n" for index in records))
    store = folder / f"store-{num_workers}"
    job = JobConfig(
        teacher=TeacherConfig(engine="fake", fake=FakeTeacherConfig(seconds_per_token=SECONDS_PER_TOKEN)),
        input=InputConfig(uri=str(prompts), kind="text"),
        labels=LabelsConfig(top_k=8),
        output=OutputConfig(uri=str(store), unit_size=UNIT_RECORDS, codebook_units=0),
        workers=WorkersConfig(replicas=num_workers),
    )
    run_job(job, folder / f"job-{num_workers}.json")
    return read_store(str(store)).rows_per_sec
