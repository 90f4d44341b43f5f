"""Leases, losses, bisection and stragglers, on the pure scheduler with a clock of the test."""

import itertools
import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.driver.bisection import Bisection
from labeler.driver.scheduler import LeasePolicy, Scheduler
from labeler.records import WorkUnit


def unit(index, num_records=8):
    return WorkUnit(f"u{index:06d}", index, "plan/segments/0.units", 0, 10, num_records, 100)


def scheduler_of(count, *, num_records=8, done=(), **policy):
    units = (unit(index, num_records) for index in range(count))
    return Scheduler(
        units, set(done).__contains__, LeasePolicy(**{"leases_per_worker": 2, "lease_sec": 300.0} | policy)
    )


def lease_to(scheduler, worker_id, now=0.0):
    lease = scheduler.next_lease(worker_id, now)
    assert lease is not None
    return lease


def test_every_unit_is_leased_once_and_two_at_a_time():
    scheduler = scheduler_of(5)
    scheduler.add_worker("a")
    first, second = lease_to(scheduler, "a"), lease_to(scheduler, "a")
    assert scheduler.next_lease("a", 0.0) is None
    assert (first.unit.unit_index, second.unit.unit_index) == (0, 1)
    assert scheduler.committed(first.lease_id, 1.0)
    assert lease_to(scheduler, "a").unit.unit_index == 2


def test_units_committed_before_are_not_leased():
    scheduler = scheduler_of(4, done=["u000000", "u000002"])
    scheduler.add_worker("a")
    assert [lease_to(scheduler, "a").unit.unit_index for _ in range(2)] == [1, 3]
    assert not scheduler.is_finished


def test_a_store_that_is_complete_is_finished_at_once():
    assert scheduler_of(2, done=["u000000", "u000001"]).is_finished
    assert scheduler_of(0).is_finished


def test_a_lost_worker_gives_its_units_to_others_without_blame():
    scheduler = scheduler_of(2)
    scheduler.add_worker("a")
    scheduler.add_worker("b")
    for _ in range(4):
        held = {lease_to(scheduler, "a").unit.unit_id for _ in range(2)}
        assert held == {"u000000", "u000001"}
        scheduler.lost_worker("a", 0.0)
        scheduler.add_worker("a")
    assert {lease_to(scheduler, "b").trial for _ in range(2)} == {None}


def test_a_lease_expires_only_without_progress():
    scheduler = scheduler_of(1, lease_sec=10)
    scheduler.add_worker("a")
    lease = lease_to(scheduler, "a", 0.0)
    assert scheduler.expired(9.9) == []
    scheduler.progressed("a", 9.0)
    assert scheduler.expired(18.9) == []
    assert scheduler.expired(19.0) == [lease]


def test_a_commit_of_an_expired_lease_still_counts_once():
    scheduler = scheduler_of(1)
    scheduler.add_worker("a")
    scheduler.add_worker("b")
    late = lease_to(scheduler, "a")
    scheduler.lost_worker("a", 1.0)
    again = lease_to(scheduler, "b", 1.0)
    assert not scheduler.committed(late.lease_id, 2.0)
    assert scheduler.committed(again.lease_id, 3.0)
    assert scheduler.is_finished


def test_a_straggler_is_leased_again_near_the_end_and_the_first_commit_decides():
    scheduler = scheduler_of(5, leases_per_worker=4, straggler_sec=1.0)
    scheduler.add_worker("a")
    scheduler.add_worker("b")
    slow = lease_to(scheduler, "a", 0.0)
    for start in range(4):
        lease = lease_to(scheduler, "b", float(start))
        assert scheduler.committed(lease.lease_id, start + 1.0)
    assert scheduler.next_lease("b", 1.9) is None
    again = lease_to(scheduler, "b", 4.0)
    assert again.unit == slow.unit
    assert scheduler.next_lease("b", 9.0) is None, "leased twice is enough"
    assert scheduler.committed(again.lease_id, 5.0)
    assert scheduler.is_finished
    assert not scheduler.committed(slow.lease_id, 6.0)


def test_a_failed_unit_waits_longer_each_time_and_is_then_given_up():
    scheduler = scheduler_of(1, errors=3)
    scheduler.add_worker("a")
    now = 0.0
    for wait in (1.0, 2.0):
        scheduler.failed_unit(lease_to(scheduler, "a", now).lease_id, "disk full", now)
        assert scheduler.next_lease("a", now + wait - 0.01) is None
        now += wait
    scheduler.failed_unit(lease_to(scheduler, "a", now).lease_id, "disk full", now)
    assert scheduler.is_finished
    assert [(failed.unit.unit_index, failed.reason) for failed in scheduler.failed] == [
        (0, "it failed 3 times, last with: disk full")
    ]


def run_with_killers(killers, num_records, deaths_by_chance=0):
    """Drive one unit whose records `killers` end every engine; returns what was skipped, and the deaths."""
    scheduler = scheduler_of(1, num_records=num_records)
    deaths = 0
    for generation in itertools.count():
        worker_id = f"w{generation}"
        scheduler.add_worker(worker_id)
        while not scheduler.is_finished:
            lease = lease_to(scheduler, worker_id)
            skipped = {position for position, _ in lease.skip}
            labeled = set(range(num_records) if lease.trial is None else lease.trial) - skipped
            if labeled & set(killers) or deaths < deaths_by_chance:
                deaths += 1
                scheduler.engine_died(worker_id, (lease.lease_id,), "SIGSEGV", 0.0)
                break
            if lease.trial is not None:
                scheduler.passed_trial(lease.lease_id, 0.0)
            else:
                scheduler.committed(lease.lease_id, 0.0)
                assert scheduler.is_finished
                return lease.skip, deaths
        else:
            return None, deaths
    raise AssertionError


@given(st.integers(1, 70), st.data())
def test_bisection_finds_exactly_the_records_that_kill(num_records, data):
    killers = data.draw(st.sets(st.integers(0, num_records - 1), max_size=3))
    skipped, deaths = run_with_killers(killers, num_records)
    assert skipped is not None
    assert {position for position, _ in skipped} == killers
    assert all("SIGSEGV" in reason for _, reason in skipped)
    assert deaths <= 2 + len(killers) * (num_records.bit_length() + 2)


def test_deaths_by_chance_reject_no_record():
    skipped, deaths = run_with_killers(set(), 8, deaths_by_chance=2)
    assert (skipped, deaths) == ((), 2)


def test_a_unit_that_kills_only_as_a_whole_is_given_up():
    scheduler = scheduler_of(1, num_records=4, bisections=2)
    for generation in range(100):
        worker_id = f"w{generation}"
        scheduler.add_worker(worker_id)
        while (lease := scheduler.next_lease(worker_id, 0.0)) is not None and lease.trial is not None:
            scheduler.passed_trial(lease.lease_id, 0.0)
        if lease is None:
            break
        scheduler.engine_died(worker_id, (lease.lease_id,), "out of memory", 0.0)
    assert scheduler.is_finished
    assert "not with any of its records: out of memory" in scheduler.failed[0].reason


def test_the_oldest_lease_is_suspected_where_nothing_is_known_and_tried_alone():
    scheduler = scheduler_of(2)
    scheduler.add_worker("w0")
    oldest, other = lease_to(scheduler, "w0"), lease_to(scheduler, "w0")
    scheduler.engine_died("w0", (), "killed", 0.0)
    scheduler.add_worker("w1")
    again = lease_to(scheduler, "w1")
    assert (again.unit, again.trial, again.alone) == (oldest.unit, None, True)
    assert scheduler.next_lease("w1", 0.0) is None, "a suspect is alone, so that the outcome is beyond doubt"
    scheduler.engine_died("w1", (), "killed", 0.0)
    scheduler.add_worker("w2")
    scheduler.add_worker("w3")
    assert lease_to(scheduler, "w3").unit == other.unit
    assert scheduler.next_lease("w3", 0.0) is None, "w3 holds another unit"
    trial = lease_to(scheduler, "w2")
    assert (trial.unit, trial.trial) == (oldest.unit, (0, 1, 2, 3))
    assert scheduler.next_lease("w2", 0.0) is None
    scheduler.passed_trial(trial.lease_id, 0.0)
    assert lease_to(scheduler, "w2").trial == (4, 5)


def test_of_two_units_in_a_dying_engine_the_innocent_one_is_cleared_without_a_bisection():
    scheduler = scheduler_of(2, num_records=4)
    scheduler.add_worker("w0")
    innocent, killer = lease_to(scheduler, "w0"), lease_to(scheduler, "w0")
    scheduler.engine_died("w0", (innocent.lease_id, killer.lease_id), "SIGSEGV", 0.0)
    scheduler.add_worker("w1")
    alone = lease_to(scheduler, "w1")
    assert (alone.unit, alone.alone, alone.trial) == (innocent.unit, True, None)
    assert scheduler.committed(alone.lease_id, 1.0)
    alone = lease_to(scheduler, "w1")
    assert (alone.unit, alone.alone, alone.trial) == (killer.unit, True, None)
    scheduler.engine_died("w1", (alone.lease_id,), "SIGSEGV", 1.0)
    scheduler.add_worker("w2")
    assert lease_to(scheduler, "w2", 1.0).trial == (0, 1)
    assert scheduler.events["bisected"] == 1


def test_leaving_gives_back_everything():
    scheduler = scheduler_of(3)
    scheduler.add_worker("a")
    held = [lease_to(scheduler, "a") for _ in range(2)]
    scheduler.gave_back(held[1].lease_id, 1.0)
    assert lease_to(scheduler, "a").unit == held[1].unit
    assert len(scheduler.abandon()) == 2
    assert scheduler.num_held == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_unit_is_committed_once_or_given_up(seed):  # noqa: C901
    rng = random.Random(seed)
    scheduler = scheduler_of(60, num_records=4, lease_sec=5, straggler_sec=1, errors=4)
    committed: list[str] = []
    generation, now = 0, 0.0
    names = []
    for _ in range(20_000):
        if scheduler.is_finished:
            break
        now += 0.1
        while len(names) < 3:
            names.append(f"w{generation}")
            scheduler.add_worker(names[-1])
            generation += 1
        worker_id = rng.choice(names)
        scheduler.next_lease(worker_id, now)
        leases = scheduler.leases_of(worker_id)
        lease = rng.choice(leases) if leases else None
        action = rng.random()
        if action < 0.02:
            scheduler.lost_worker(worker_id, now)
            names.remove(worker_id)
        elif action < 0.04:
            scheduler.engine_died(worker_id, (lease.lease_id,) if lease else (), "died", now)
            names.remove(worker_id)
        elif lease is None:
            continue
        elif action < 0.06:
            scheduler.failed_unit(lease.lease_id, "storage", now)
        elif action < 0.10:
            scheduler.gave_back(lease.lease_id, now)
        elif action < 0.6:
            if lease.trial is not None:
                scheduler.passed_trial(lease.lease_id, now)
            elif scheduler.committed(lease.lease_id, now):
                committed.append(lease.unit.unit_id)
        for late in scheduler.expired(now):
            if late.worker_id in names:
                scheduler.lost_worker(late.worker_id, now)
                names.remove(late.worker_id)
    assert scheduler.is_finished
    given_up = [failed.unit.unit_id for failed in scheduler.failed]
    assert sorted(committed + given_up) == [f"u{index:06d}" for index in range(60)]


def test_a_bisection_of_one_is_a_conviction():
    assert not Bisection.of([5]).convicted, "first it is tried alone"
    assert Bisection.of([5]).after(died=True).convicted
    assert Bisection.of([1, 2, 3]).trial == (1,)
    assert Bisection.of([1, 2, 3]).after(died=False).suspects == (2, 3)
    assert Bisection((4,)).after(died=False).cleared


def drive(count, num_workers=1000):
    """Lease and commit `count` units on `num_workers` workers; seconds of this thread per unit."""
    scheduler = scheduler_of(count)
    names = [f"w{index}" for index in range(num_workers)]
    for name in names:
        scheduler.add_worker(name)
    held = []
    started = time.thread_time()
    for name in itertools.cycle(names):
        lease = scheduler.next_lease(name, 0.0)
        if lease is None and not held:
            break
        if lease is not None:
            held.append(lease.lease_id)
        if len(held) >= 2 * num_workers or lease is None:
            scheduler.committed(held.pop(0), 1.0)
    assert scheduler.is_finished
    return (time.thread_time() - started) / count


def test_the_cost_of_a_unit_does_not_grow_with_the_plan():
    small = min(drive(4_000) for _ in range(3))
    large = min(drive(40_000) for _ in range(2))
    assert large < 3 * small


def test_memory_follows_the_leases_and_not_the_plan():
    peaks = []
    for count in (1_000, 6_000):
        tracemalloc.start()
        drive(count, num_workers=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
