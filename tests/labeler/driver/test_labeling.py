"""The driver's loop on a pool of the test: what it makes of each thing that a pool tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.config.run_settings import LimitsConfig
from labeler.driver.actors.pool_events import (
    LeaseEnded,
    LeaseFailed,
    PoolEvent,
    ReplicaGivenUp,
    StartFailed,
    WorkerDied,
    WorkerLeft,
    WorkerReady,
)
from labeler.driver.loop import LabelingLoop
from labeler.driver.scheduler import LeasePolicy, Scheduler
from labeler.driver.stop import StopRequest
from labeler.errors import JobFailedError, TooManyRejectsError
from labeler.job.logs import JobLog
from labeler.job.status import Tally
from labeler.job.store_setup import StoreSetup
from labeler.planning.plan import PlanTotals
from labeler.planning.preflight import prepare
from labeler.records import Committed, Lease, TeacherDescription, WorkUnit
from labeler.teacher.protocol import build_teacher
from logitstore.manifest.fields import ShardEntry
from logitstore.records import Reject
from logitstore.store import LogitStore
from tests.labeler.jobs import overrides_for, write_records


class Pool:
    """Tells what it was given to tell, one poll after the other, and notes what it is asked."""

    def __init__(self, *polls: Sequence[PoolEvent]) -> None:
        self.tell(*polls)
        self.ready: list[str] = []
        self.submitted: list[Lease] = []
        self.num_given_up = 0
        self.lack_of_room, self.waited_sec = "", 0.0
        self.is_leaving = False

    def tell(self, *polls: Sequence[PoolEvent]) -> None:
        self._polls = list(polls)

    def leave(self) -> None:
        self.is_leaving = True

    def poll(self, timeout_sec: float) -> Sequence[PoolEvent]:
        events = self._polls.pop(0)
        for event in events:
            if isinstance(event, WorkerReady):
                self.ready.append(event.worker_id)
            elif isinstance(event, WorkerDied | WorkerLeft):
                self.ready.remove(event.worker_id)
            elif isinstance(event, ReplicaGivenUp):
                self.num_given_up += 1
        return events

    def ready_workers(self) -> list[str]:
        return self.ready

    def submit(self, lease: Lease) -> None:
        self.submitted.append(lease)

    def give_up(self, worker_id: str, reason: str) -> list[PoolEvent]:
        self.ready.remove(worker_id)
        return [WorkerDied(worker_id, reason, engine=False, culprits=())]


class Driver:
    """A loop over two units with its parts."""

    def __init__(self, folder: Path, *polls: Sequence[PoolEvent], limits: LimitsConfig | None = None) -> None:
        write_records(folder / "in.jsonl", 4)
        self.job = load_job(None, overrides_for(folder), {})
        if limits is not None:
            self.job = self.job.model_copy(update={"limits": limits})
        prepared = prepare(self.job)
        self.said: list[str] = []
        self.setup = StoreSetup(self.job, prepared, PlanTotals(4, 4, 2, 100, 50), self.said.append)
        self.pool = Pool(*polls)
        self.tally = Tally(units_total=2)
        units = [WorkUnit(f"u{index}", index, "s", 0, 1, 2, 50) for index in range(2)]
        self.scheduler = Scheduler(
            iter(units), lambda _: False, LeasePolicy(leases_per_worker=2, lease_sec=300.0)
        )
        pool: Any = self.pool
        self.loop = LabelingLoop(
            self.job, self.scheduler, pool, self.setup, self.tally, JobLog(None), self.said.append
        )

    def run(self) -> None:
        """Until the pool has told everything."""
        lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
        with pytest.raises(IndexError):
            self.loop.run(StopRequest(), lease, lambda: None)


def leases_so_many(driver: Driver, num_leased: int) -> None:
    """Run until that many leases are out, or until the job ends by itself where there are to be none."""
    if num_leased:
        driver.run()
    else:
        lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
        assert driver.loop.run(StopRequest(), lease, lambda: None) is False
    assert len(driver.pool.submitted) == num_leased


@pytest.mark.parametrize(("num_stored", "num_leased"), [(99, 2), (100, 0)])
def test_the_tokens_that_a_job_may_have_end_it_like_a_signal(
    tmp_path: Path, description: TeacherDescription, num_stored: int, num_leased: int
) -> None:
    driver = Driver(tmp_path, [WorkerReady("worker-0.0", description, 1.0)])
    limits = driver.job.limits.model_copy(update={"max_tokens": 100})
    driver.loop._job = driver.job.model_copy(update={"limits": limits})
    driver.tally.tokens = num_stored
    leases_so_many(driver, num_leased)
    told = any("limits.max_tokens = 100 is reached: 100 tokens are stored" in text for text in driver.said)
    assert told == driver.pool.is_leaving == (num_leased == 0)


@pytest.mark.parametrize(("reached", "num_leased"), [("", 2), ("the money is spent", 0)])
def test_the_money_that_a_job_may_cost_ends_it_like_a_signal(
    tmp_path: Path, description: TeacherDescription, reached: str, num_leased: int
) -> None:
    driver = Driver(tmp_path, [WorkerReady("worker-0.0", description, 1.0)])
    driver.loop._money_reached = lambda: reached
    leases_so_many(driver, num_leased)
    told = any("the money is spent. Raise it" in text for text in driver.said)
    assert told == driver.pool.is_leaving == (num_leased == 0)


@pytest.fixture
def description() -> TeacherDescription:
    job = load_job(None, overrides_for(Path("unused")), {})
    return build_teacher(job.teacher, job.labels, job.sampling, cores=None).describe()


def test_a_store_labeled_through_the_public_api_is_marked_and_the_user_is_told(
    tmp_path: Path, description: TeacherDescription
) -> None:
    public = replace(
        description, exact_temperatures=(1.0,), info=replace(description.info, capture="public_api")
    )
    driver = Driver(tmp_path, [WorkerReady("worker-0.0", public, 1.0)])
    driver.run()
    manifest = LogitStore.open(tmp_path / "store").manifest
    assert (manifest.labels.temperatures, manifest.teacher.capture) == ((1.0,), "public_api")
    assert any("WARNING" in text and "exact at T=1 only" in text for text in driver.said)


def test_a_worker_with_another_teacher_is_given_up_and_the_job_goes_on(
    tmp_path: Path, description: TeacherDescription
) -> None:
    other = replace(description, info=replace(description.info, engine_version="2"))
    ready = [WorkerReady("worker-0.0", description, 1.0), WorkerReady("worker-1.0", other, 1.0)]
    driver = Driver(tmp_path, ready)
    driver.run()
    assert driver.pool.ready == ["worker-0.0"]
    assert [lease.worker_id for lease in driver.pool.submitted] == ["worker-0.0"] * 2


def test_a_worker_that_leaves_gives_its_units_to_another_and_is_no_failure(
    tmp_path: Path, description: TeacherDescription
) -> None:
    driver = Driver(
        tmp_path,
        [WorkerReady("worker-0.0", description, 1.0)],
        [WorkerLeft("worker-0.0", "node-a"), WorkerReady("worker-0.1", description, 1.0)],
    )
    driver.run()
    assert [(lease.worker_id, lease.unit.unit_id) for lease in driver.pool.submitted] == [
        ("worker-0.0", "u0"),
        ("worker-0.0", "u1"),
        ("worker-0.1", "u0"),
        ("worker-0.1", "u1"),
    ]
    assert not driver.tally.failures_by_kind
    assert any("node-a" in text for text in driver.said)


def test_why_an_engine_did_not_start_is_said_before_it_is_tried_again(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [StartFailed("worker-0.0", "ValueError: no such attention")])
    driver.run()
    assert driver.said == ["worker-0.0 did not start and is started anew: ValueError: no such attention"]
    assert driver.tally.failures_by_kind == {"start_failed": 1}
    assert list(driver.tally.causes) == ["start_failed: worker-0.0: ValueError: no such attention"]


def test_the_cause_of_each_failure_is_said_when_it_happens(
    tmp_path: Path, description: TeacherDescription
) -> None:
    """Where lines and no live picture are shown there was but a count until the end of the job."""
    driver = Driver(
        tmp_path,
        [WorkerReady("worker-0.0", description, 1.0)],
        [LeaseFailed("worker-0.0", 0, "OSError: disk full")],
        [WorkerDied("worker-0.0", "its node has died", engine=False, culprits=())],
    )
    driver.run()
    assert driver.said[-2:] == [
        "a unit failed on worker-0.0: OSError: disk full",
        "worker-0.0 is lost and what it held is labeled anew: its node has died",
    ]


def test_a_job_ends_with_the_reason_once_every_replica_is_given_up(tmp_path: Path) -> None:
    given_up: list[PoolEvent] = [
        ReplicaGivenUp("worker-0.0", "no such model"),
        ReplicaGivenUp("worker-1.0", "no such model"),
    ]
    driver = Driver(tmp_path, given_up)
    lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
    with pytest.raises(JobFailedError, match=r"no replica is left.*no such model.*run the same command"):
        driver.loop.run(StopRequest(), lease, lambda: None)


def test_units_that_fail_one_after_another_end_the_job(
    tmp_path: Path, description: TeacherDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeler.driver.loop.HOPELESS_FAILURES", 2)
    polls: list[Any] = [[WorkerReady("worker-0.0", description, 1.0)]]
    polls += [[LeaseFailed("worker-0.0", lease_id, "disk full")] for lease_id in range(4)]
    driver = Driver(tmp_path, *polls)
    lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
    with pytest.raises(JobFailedError, match=r"units failed one after another.*disk full"):
        driver.loop.run(StopRequest(), lease, lambda: None)


def test_a_job_without_room_ends_after_the_wait_it_allows(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [], [])
    driver.pool.lack_of_room, driver.pool.waited_sec = "2 of 2 replicas wait for room", 61.0
    driver.run()  # without limits.wait_sec it waits
    limits = driver.job.limits.model_copy(update={"wait_sec": 60.0})
    driver = Driver(tmp_path, [], [], limits=limits)
    driver.pool.lack_of_room, driver.pool.waited_sec = "2 of 2 replicas wait for room", 59.0
    driver.run()
    driver = Driver(tmp_path, [], [], limits=limits)
    driver.pool.lack_of_room, driver.pool.waited_sec = "2 of 2 replicas wait for room", 61.0
    lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
    with pytest.raises(JobFailedError, match=r"limits.wait_sec = 60: 2 of 2 replicas wait for room\. Run"):
        driver.loop.run(StopRequest(), lease, lambda: None)


def test_responses_that_an_engine_refuses_count_once_for_their_record(
    tmp_path: Path, description: TeacherDescription
) -> None:
    """Eight responses of one record are one record of the hundred, of which five may be refused."""

    driver = Driver(tmp_path, [WorkerReady("worker-0.0", description, 1.0)])
    driver.setup.totals = replace(driver.setup.totals, num_records=100)
    driver.run()

    def committed(unit: int, *records: int) -> LeaseEnded:
        lease = driver.pool.submitted[unit]
        entry = ShardEntry(lease.unit.unit_id, unit, "", 0, 0, 0, 0, "", 8, 1.0, "worker-0.0")
        reasons = [(record, "no finite logits") for record in records for _ in range(8)]
        rejects = [Reject("in.jsonl", number, str(number), why, "engine_error") for number, why in reasons]
        return LeaseEnded("worker-0.0", Committed(lease.lease_id, entry, True, tuple(rejects)))

    driver.pool.tell([committed(0, 1)])
    driver.run()
    assert (driver.tally.refused, driver.tally.rejects_by_kind) == ({"engine_error": 1}, {"engine_error": 8})
    driver.pool.tell([committed(1, 2, 3, 4, 5, 6)])
    lease: Any = type("Held", (), {"raise_if_lost": lambda _: None})()
    with pytest.raises(TooManyRejectsError) as told:
        driver.loop.run(StopRequest(), lease, lambda: None)
    assert "6 of 100 records cannot be labeled (6 engine_error)" in str(told.value)
    assert "For example in.jsonl:1: no finite logits; " in str(told.value)
    assert "See rejects.jsonl of the store; correct what refuses them, or the input, or" in str(told.value)
