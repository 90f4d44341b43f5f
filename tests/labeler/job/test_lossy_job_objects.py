"""Lost requests and replies over the job's own objects: lease, plan, rejects, status."""

import contextlib
import random

import pytest

from labeler.errors import PlanTakenError, StoreBusyError
from labeler.job.driver_lease import DriverLease, Holder, acquire
from labeler.job.status_writer import write_status
from labeler.planning.plan import Plan
from logitstore.errors import ObjectStoreError
from logitstore.job_objects import STATUS_NAME, JobState, JobStatus, parse_status
from logitstore.objects.opening import Objects
from tests.labeler.planning.test_plan import job_for, planned_ids, records, run_pass, write_input
from tests.logitstore.lossy_objects import LossyBackend, Memory, objects_over

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_has_every_record_once(tmp_path, monkeypatch, seed: int) -> None:
    """Passes are cut off and repeated; a second driver plans in the middle of one."""
    monkeypatch.setattr("labeler.planning.plan.SEGMENT_UNITS", 1)
    write_input(tmp_path, records(24))
    job, memory, rng = job_for(tmp_path), Memory(), random.Random(seed)
    nested = [False]

    def second_plans(_) -> None:
        if nested[0] or rng.random() < 0.9:
            return
        nested[0] = True
        try:
            run_pass(job, objects_over(LossyBackend(memory, rng, 0.1)))
        except (ObjectStoreError, PlanTakenError):
            pass
        finally:
            nested[0] = False

    lossy = objects_over(LossyBackend(memory, rng, 0.2, second_plans))
    for _ in range(100):
        try:
            run_pass(job, lossy)
            break
        except (ObjectStoreError, PlanTakenError):
            continue
    clean = objects_over(LossyBackend(memory, rng, 0.0))
    plan, totals = run_pass(job, clean)
    found = planned_ids(clean, plan)
    assert len(found) == len(set(found)) == 24
    assert [unit.unit_index for unit in Plan(clean).units()] == list(range(totals.num_units))


@pytest.fixture
def drivers_elsewhere(monkeypatch):
    """Drivers of machines that see nothing of each other but the store."""
    monkeypatch.setattr("labeler.job.driver_lease.require_conditional_writes", lambda _: None)
    monkeypatch.setattr(Holder, "is_on_this_machine", property(lambda _: False))


def silent_driver(objects: Objects) -> DriverLease:
    """One that has taken the lease from a silent driver and is suspended at once."""
    for _ in range(100):
        try:
            lease = acquire(objects, 0.02, lambda _: None)
        except (ObjectStoreError, StoreBusyError):
            continue
        lease._stop.set()
        lease._thread.join()
        return lease
    raise AssertionError("no driver could begin")


@pytest.mark.usefixtures("drivers_elsewhere")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_lease_has_one_holder(seed: int) -> None:
    """Whoever takes the lease from a silent driver has it alone: that one's next renewal says so."""
    memory, rng = Memory(), random.Random(seed)
    held = [silent_driver(objects_over(LossyBackend(memory, rng, 0.2))) for _ in range(4)]
    clean = objects_over(LossyBackend(memory, rng, 0.0))
    still = []
    for lease in held:
        lease._objects = clean
        still.append(lease._renew())
    assert still == [False, False, False, True]


@pytest.mark.usefixtures("drivers_elsewhere")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_status_is_that_of_the_last_driver(seed: int) -> None:
    """In the middle of a write the driver falls asleep: another begins, and the last one also finishes."""
    memory, rng = Memory(), random.Random(seed)
    held: list[tuple[Objects, DriverLease]] = []
    finished: list[bytes] = []
    nested = [False]

    def write(objects: Objects, lease: DriverLease, state: JobState) -> bool:
        """Repeated as the writer does when storage fails."""
        for _ in range(200):
            with contextlib.suppress(ObjectStoreError):
                return write_status(objects, lease, JobStatus(state, units_done=rng.randrange(1000)))
        raise AssertionError("no write got through")

    def others_act(_: object) -> None:
        if nested[0] or finished or rng.random() < 0.8:
            return
        nested[0] = True
        if rng.random() < 0.5:
            write(*rng.choice(held), "running")
        else:
            begin()
        if len(held) == 4:
            assert write(*held[-1], "finished")
            finished.append(memory.data[STATUS_NAME])
        nested[0] = False

    def begin() -> None:
        objects = objects_over(LossyBackend(memory, rng, 0.2, others_act))
        held.append((objects, silent_driver(objects)))

    nested[0] = True
    begin()
    nested[0] = False
    while not finished:
        write(*rng.choice(held), "running")
    for objects, lease in held[:-1]:
        assert not write(objects, lease, "running")
        assert lease.is_lost
    assert memory.data[STATUS_NAME] == finished[0]
    assert parse_status(finished[0]).driver == held[-1][1].owner
