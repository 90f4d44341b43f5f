"""Random schedules of lost requests and replies over who drives a job, and over what its status is."""

from __future__ import annotations

import contextlib
import random

from benchmarks.schedules.lossy_objects import LossyBackend, Memory, objects_over
from labeler.errors import StoreBusyError
from labeler.job.driver_lease import DriverLease, acquire
from labeler.job.status_writer import write_status
from logitstore.errors import ObjectStoreError
from logitstore.job_objects import STATUS_NAME, JobState, JobStatus
from logitstore.job_parsing import parse_status
from logitstore.objects.opening import Objects

FAULT_SHARE = 0.2
NUM_DRIVERS = 4
TERM_SEC = 0.02


def lease_schedule(seed: int) -> int:
    """Drivers follow each other; the last alone has the lease. The faults that struck.

    Raises AssertionError where a driver that was replaced does not find that out.
    """
    memory, rng = Memory(), random.Random(seed)
    backends = [LossyBackend(memory, rng, FAULT_SHARE) for _ in range(NUM_DRIVERS)]
    held = [_silent_driver(objects_over(backend)) for backend in backends]
    clean = objects_over(LossyBackend(memory, rng, 0.0))
    still = []
    for lease in held:
        lease._objects = clean
        still.append(lease._renew())
    assert still == [*[False] * (NUM_DRIVERS - 1), True]
    return sum(backend.num_faults for backend in backends)


def status_schedule(seed: int) -> int:
    """In the middle of a write the driver falls asleep: another begins, and the last one also finishes.

    Raises AssertionError where the status is another than the last driver's. The faults that struck.
    """
    drivers = _Drivers(seed)
    drivers.begin()
    while not drivers.finished:
        drivers.write(*drivers.rng.choice(drivers.held), "running")
    for objects, lease in drivers.held[:-1]:
        assert not drivers.write(objects, lease, "running")
        assert lease.is_lost
    assert drivers.memory.data[STATUS_NAME] == drivers.finished
    assert parse_status(drivers.finished).driver == drivers.held[-1][1].owner
    return sum(backend.num_faults for backend in drivers.backends)


class _Drivers:
    """Drivers that follow each other on one store; those that were replaced go on writing."""

    def __init__(self, seed: int) -> None:
        self.memory, self.rng = Memory(), random.Random(seed)
        self.held: list[tuple[Objects, DriverLease]] = []
        self.backends: list[LossyBackend] = []
        self.finished = b""
        """The status of the last driver."""
        self._nested = False

    def begin(self) -> None:
        was_nested, self._nested = self._nested, True
        self.backends.append(LossyBackend(self.memory, self.rng, FAULT_SHARE, self._others_act))
        objects = objects_over(self.backends[-1])
        self.held.append((objects, _silent_driver(objects)))
        self._nested = was_nested

    def write(self, objects: Objects, lease: DriverLease, state: JobState) -> bool:
        """Repeated as the driver does when storage fails."""
        for _ in range(200):
            with contextlib.suppress(ObjectStoreError):
                return write_status(objects, lease, JobStatus(state, units_done=self.rng.randrange(1000)))
        raise AssertionError("no write got through")

    def _others_act(self, _: object) -> None:
        if self._nested or self.finished or self.rng.random() < 0.8:
            return
        self._nested = True
        if self.rng.random() < 0.5:
            self.write(*self.rng.choice(self.held), "running")
        else:
            self.begin()
        if len(self.held) == NUM_DRIVERS:
            assert self.write(*self.held[-1], "finished")
            self.finished = self.memory.data[STATUS_NAME]
        self._nested = False


def _silent_driver(objects: Objects) -> DriverLease:
    """One that has taken the lease from a silent driver and is suspended at once."""
    for _ in range(500):
        try:
            lease = acquire(objects, TERM_SEC, lambda _: None)
        except (ObjectStoreError, StoreBusyError):
            continue
        lease._stop.set()
        lease._thread.join()
        return lease
    raise AssertionError("no driver could begin")
