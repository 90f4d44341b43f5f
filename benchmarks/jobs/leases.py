"""What the labeler's driver costs per unit with many replicas whose engines cost nothing.

The real scheduler, pool and driver's loop, over real Ray calls. A thousand actor processes would not fit
on one machine, so a few stand in for all: each answers for many replicas, at once and without labels.
Per job size: units per second through Ray, the time inside the scheduler, and the driver's memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import JobConfig, load_job
from labeler.driver.actors.pool import ActorPool
from labeler.driver.loop import LabelingLoop
from labeler.driver.scheduler import LeasePolicy, Scheduler
from labeler.driver.stop import StopRequest
from labeler.job.driver_lease import DriverLease, acquire
from labeler.job.logs import JobLog
from labeler.job.status import Tally
from labeler.on_ray.runtime import ray_for
from labeler.planning.plan import PlanTotals
from labeler.records import Committed, Heartbeat, Lease, Placement, WorkUnit
from labeler.teacher.response_ends import ResponseEnds
from logitstore.common.options import positive
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import Objects

PROCESSES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--units",
        type=positive,
        nargs="+",
        default=[10_000, 100_000],
        help="of each job (default 10000 100000)",
    )
    parser.add_argument("--replicas", type=positive, default=1000, help="that are played (default 1000)")
    parser.add_argument("--out", type=Path, default=Path("build/leases"), help="folder of JSON and plot")
    parser.add_argument("--quiet", action="store_true", help="print no table")


def run(args: argparse.Namespace) -> int:
    uri = str((args.out / "store").absolute())
    overrides = ["teacher.engine=fake", "input.uri=none", "input.kind=text", f"output.uri={uri}"]
    job = load_job(None, [*overrides, f"workers.replicas={args.replicas}"], {})
    lease = acquire(Objects(uri), job.workers.driver_lease_sec, print)
    try:
        with ray_for(job):
            sizes = [drive(job, lease, count) for count in sorted(args.units)]
    finally:
        lease.release()
    publish(build_result(sizes, args.replicas, args.out), args.out, quiet=args.quiet)
    return 0


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """One job size, measured."""

    num_units: int
    us_per_unit: float
    """From when all replicas are ready to the last commit."""
    scheduler_us_per_unit: float
    """Part of that time inside the scheduler."""
    peak_mib: float
    """Largest memory of the driver's process so far."""


class StandIn:
    """Answers for many workers; methods as in `labeler.worker.actor.Worker`."""

    def place(self) -> Placement:
        return Placement(node_id="node", host="host", process_id=0, cores=(0,))

    def start(self, cores: str | None) -> str:
        return "ready"

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(progress=0, in_engine=(), num_sequences=0, num_tokens=0)

    def label_unit(self, lease: Lease) -> Committed:
        unit = lease.unit
        entry = ShardEntry(
            unit_id=unit.unit_id,
            unit_index=unit.unit_index,
            name="",
            num_sequences=unit.num_records,
            num_rows=unit.num_tokens,
            num_tokens=unit.num_tokens,
            num_bytes=0,
            checksum="",
            num_rejects=0,
            seconds=0.0,
            worker="w",
        )
        return Committed(lease.lease_id, entry, won=True)

    def leave(self) -> None: ...

    def close(self) -> None: ...


class SharedActors:
    """Where the pool asks for an actor of its own it is handed one of a few, in turn."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles
        self._next = 0

    def options(self, **_options: Any) -> SharedActors:
        return self

    def remote(self, *_arguments: Any, **_named: Any) -> Any:
        self._next += 1
        return self._handles[self._next % len(self._handles)]


class NoStore:
    """The part of `StoreSetup` that the loop uses, for units that nobody stores."""

    store = "in place of one"

    def __init__(self, num_units: int) -> None:
        self.totals = PlanTotals(num_units, num_units, num_units, 0, 0)

    def take_description(self, description: str) -> bool:
        return False

    def committed_one(self, entry: ShardEntry) -> None: ...

    def compact_beside(self) -> None: ...


class TimedScheduler(Scheduler):
    """Sums the time spent inside for each unit."""

    spent_sec = 0.0

    def next_lease(self, worker_id: str, now_sec: float) -> Lease | None:
        began = time.perf_counter()
        try:
            return super().next_lease(worker_id, now_sec)
        finally:
            self.spent_sec += time.perf_counter() - began

    def committed(self, lease_id: int, now_sec: float) -> bool:
        began = time.perf_counter()
        try:
            return super().committed(lease_id, now_sec)
        finally:
            self.spent_sec += time.perf_counter() - began


def units(count: int) -> Iterator[WorkUnit]:
    for index in range(count):
        yield WorkUnit(f"{index:016x}", index, "plan/segments/000000.units", 0, 1, 64, 16_384)


def drive(job: JobConfig, lease: DriverLease, num_units: int) -> Size:
    """A whole job of so many units."""
    import ray

    handles = [ray.remote(StandIn).options(num_cpus=0, max_concurrency=8).remote() for _ in range(PROCESSES)]
    pool = ActorPool(job, ResponseEnds(), SharedActors(handles))
    policy = LeasePolicy(leases_per_worker=2, lease_sec=300.0)
    scheduler = TimedScheduler(units(num_units), lambda unit_id: False, policy)
    tally = Tally(units_total=num_units)
    setup: Any = NoStore(num_units)
    loop = LabelingLoop(job, scheduler, pool, setup, tally, JobLog(None), print)
    all_ready: list[tuple[float, int, float]] = []

    def note_when_all_are_ready() -> None:
        if not all_ready and len(pool.ready_workers()) == job.workers.replicas:
            all_ready.append((time.perf_counter(), tally.units_done, scheduler.spent_sec))

    with StopRequest() as stop:
        loop.run(stop, lease, note_when_all_are_ready)
    ended = time.perf_counter()
    pool.close()
    if not all_ready:
        raise ValueError(f"{num_units} units were done before all replicas were ready; give more --units")
    began, done_before, spent_before_sec = all_ready[0]
    counted = tally.units_done - done_before
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Size(
        num_units,
        us_per_unit=(ended - began) / counted * 1e6,
        scheduler_us_per_unit=(scheduler.spent_sec - spent_before_sec) / counted * 1e6,
        peak_mib=peak_mib,
    )


def build_result(sizes: list[Size], replicas: int, out: Path) -> Result:
    counts = [size.num_units for size in sizes]
    with plot(
        out / "leases.svg",
        "What a unit costs the driver",
        "units",
        "microseconds per unit",
    ) as axes:
        axes.loglog(counts, [size.us_per_unit for size in sizes], marker="o", label="through Ray")
        axes.loglog(counts, [size.scheduler_us_per_unit for size in sizes], marker="o", label="scheduler")
    return Result.of(
        "leases",
        meaning=f"A unit costs the driver {sizes[-1].us_per_unit:.0f} us in a job of {counts[-1]:,}, "
        f"{sizes[-1].us_per_unit / sizes[0].us_per_unit:.2f} times what it costs in one of {counts[0]:,}.",
        columns=("units", "units/s", "us per unit", "of it scheduler, us", "driver's memory, MiB"),
        rows=[
            (
                size.num_units,
                1e6 / size.us_per_unit,
                size.us_per_unit,
                size.scheduler_us_per_unit,
                size.peak_mib,
            )
            for size in sizes
        ],
        figures=[
            Figure.of("growth_of_a_unit", sizes[-1].us_per_unit / sizes[0].us_per_unit, ""),
            Figure.of("units_per_sec", 1e6 / sizes[-1].us_per_unit, "units/s"),
            Figure.of("driver_mib", sizes[-1].peak_mib, "MiB"),
        ],
        plots=["leases.svg"],
        notes=[f"{replicas} replicas with two leases each, answered by {PROCESSES} processes over Ray."],
    )
