"""Lost requests and replies over the job's own objects: lease, plan, rejects, status."""

import random

import pytest

from benchmarks.schedules.driver_schedules import lease_schedule, status_schedule
from benchmarks.schedules.lossy_objects import LossyBackend, Memory, objects_over
from labeler.errors import PlanTakenError
from labeler.planning.plan import Plan
from logitstore.errors import ObjectStoreError
from tests.labeler.planning.test_plan import job_for, planned_ids, records, run_pass, write_input

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


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lease_has_one_holder(seed: int) -> None:
    """Whoever takes the lease from a silent driver has it alone: that one's next renewal says so."""
    lease_schedule(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_status_is_that_of_the_last_driver(seed: int) -> None:
    """Also where a driver falls asleep in the middle of a write."""
    status_schedule(seed)
