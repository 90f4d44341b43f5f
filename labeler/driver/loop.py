"""The driver's loop: leases to workers, results to the tally, trouble to the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from labeler.config.loading import JobConfig
from labeler.driver.actors.pool import ActorPool
from labeler.driver.actors.pool_events import (
    LeaseEnded,
    LeaseFailed,
    PoolEvent,
    ReplicaGivenUp,
    ReplicasWait,
    StartFailed,
    WorkerAlive,
    WorkerDied,
    WorkerLeft,
    WorkerReady,
)
from labeler.driver.scheduler import Scheduler
from labeler.driver.stop import StopRequest
from labeler.errors import JobFailedError, TeacherMismatchError
from labeler.job.driver_lease import DriverLease
from labeler.job.logs import JobLog
from labeler.job.status import Tally
from labeler.job.store_setup import StoreSetup
from labeler.planning.planner import check_reject_share
from labeler.records import Committed, GaveBack, Lease, PassedTrial
from logitstore.job_objects import REJECTS_NAME, JobState
from logitstore.records import Reject

POLL_SEC = 0.2
COMPACT_EVERY_UNITS = 1000
MOST_EXAMPLES = 3
HOPELESS_FAILURES = 20
"""So many failures in a row, without a unit committed between, end the job."""


class LabelingLoop:
    """Runs until every unit is committed or given up, or the job is told to stop."""

    def __init__(
        self,
        job: JobConfig,
        scheduler: Scheduler,
        pool: ActorPool,
        setup: StoreSetup,
        tally: Tally,
        log: JobLog,
        note: Callable[[str], None],
        money_reached: Callable[[], str] = lambda: "",
    ) -> None:
        """`money_reached` says so where `limits.max_cost` is reached, else nothing."""
        self._job = job
        self._scheduler = scheduler
        self._pool = pool
        self._setup = setup
        self._tally = tally
        self._log = log
        self._note = note
        self._money_reached = money_reached
        self._last_progress: dict[str, int] = {}
        self._failures_in_row = 0
        self._refused_examples: list[Reject] = []
        self._drain_until: float | None = None

    @property
    def state(self) -> JobState:
        if self._drain_until is not None:
            return "draining"
        return "running" if self._setup.store is not None else "starting"

    def run(self, stop: StopRequest, lease: DriverLease, on_tick: Callable[[], None]) -> bool:
        """True if all units are done or given up, False if the job was stopped before.

        Raises JobFailedError, TooManyRejectsError, LeaseLostError, TeacherMismatchError.
        """
        while not self._scheduler.is_finished:
            lease.raise_if_lost()
            if self._drain_until is None and (stop.requested or self._is_spent()):
                self._begin_drain()
            if self._drain_until is not None and (
                self._scheduler.num_held == 0 or time.monotonic() >= self._drain_until or stop.at_once
            ):
                self._log.write("drained", given_back=len(self._scheduler.abandon()))
                return False
            for event in self._pool.poll(POLL_SEC):
                self._handle(event)
            self._end_expired()
            self._check_wait()
            if self._drain_until is None:
                self._lease_out()
            on_tick()
        return True

    def _check_wait(self) -> None:
        """A job that nobody has room for holds its driver and its lease: `limits.wait_sec` ends it."""
        limit_sec = self._job.limits.wait_sec
        if limit_sec is not None and self._pool.lack_of_room and self._pool.waited_sec > limit_sec:
            raise JobFailedError(
                f"no replica has found room for limits.wait_sec = {limit_sec:g}: {self._pool.lack_of_room}. "
                "Run the same command again when there is room; what is labeled stays"
            )

    def _is_spent(self) -> bool:
        """Whether the tokens or the money that the job may have are reached; says so."""
        limits = self._job.limits
        if limits.max_tokens is not None and self._tally.tokens >= limits.max_tokens:
            reached = (
                f"limits.max_tokens = {limits.max_tokens:,} is reached: {self._tally.tokens:,} tokens are "
                "stored"
            )
        else:
            reached = self._money_reached()
        if not reached:
            return False
        self._note(f"{reached}. Raise it and run the same command again to go on")
        return True

    def _begin_drain(self) -> None:
        seconds = self._job.workers.drain_sec
        self._drain_until = time.monotonic() + seconds
        self._note(f"stopping: units at work have {seconds:g} s to finish; a second signal stops at once")
        self._log.write("draining", seconds=seconds)
        self._pool.leave()

    def _lease_out(self) -> None:
        if self._setup.store is None:
            return  # Before the first teacher is known there is no store to commit to.
        now = time.monotonic()
        for worker_id in self._pool.ready_workers():
            while (lease := self._scheduler.next_lease(worker_id, now)) is not None:
                self._log.write(
                    "leased",
                    lease=lease.lease_id,
                    unit=lease.unit.unit_id,
                    worker=worker_id,
                    trial=lease.trial,
                )
                self._pool.submit(lease)

    def _handle(self, event: PoolEvent) -> None:
        now = time.monotonic()
        match event:
            case WorkerAlive(worker_id, heartbeat):
                self._tally.heard(worker_id, heartbeat, now)
                if self._last_progress.get(worker_id) != heartbeat.progress:
                    self._last_progress[worker_id] = heartbeat.progress
                    self._scheduler.progressed(worker_id, now)
            case WorkerReady():
                self._ready(event)
            case WorkerDied():
                self._died(event)
            case StartFailed(worker_id, reason):
                self._log.write("start_failed", worker=worker_id, reason=reason)
                self._tally.count_failure("start_failed", f"{worker_id}: {reason}")
                self._note(f"{worker_id} did not start and is started anew: {reason}")
            case WorkerLeft(worker_id, node_name):
                self._log.write("worker_left", worker=worker_id, node=node_name)
                self._note(f"{worker_id} left {node_name}, which is about to go")
                self._close_account(worker_id)
                self._scheduler.lost_worker(worker_id, now)
            case LeaseEnded():
                self._ended(event)
            case LeaseFailed(worker_id, lease_id, reason):
                self._log.write("unit_failed", lease=lease_id, worker=worker_id, reason=reason)
                self._tally.count_failure("unit_failed", reason)
                self._note(f"a unit failed on {worker_id}: {reason}")
                self._scheduler.failed_unit(lease_id, reason, now)
                self._count_failure_in_row(reason)
            case ReplicasWait(reason):
                self._log.write("replicas_wait", reason=reason)
                self._note(reason)
            case ReplicaGivenUp(worker_id, reason):
                self._log.write("replica_given_up", worker=worker_id, reason=reason)
                if self._pool.num_given_up == self._job.workers.replicas:
                    raise JobFailedError(
                        f"no replica is left: each was given up, the last with: {reason}. Correct the cause "
                        "and run the same command again, what is labeled stays; workers.restarts sets how "
                        "many failures in a row a replica may have"
                    )
                self._note(f"{worker_id} is given up after repeated failures: {reason}")

    def _ready(self, event: WorkerReady) -> None:
        self._log.write("worker_ready", worker=event.worker_id, load_sec=round(event.load_sec, 2))
        try:
            first = self._setup.take_description(event.description)
        except TeacherMismatchError as error:
            if self._setup.store is None:
                raise
            for follow_up in self._pool.give_up(event.worker_id, str(error)):
                self._handle(follow_up)
            return
        labels = self._job.labels
        if first and labels.rows and event.description.exact_temperatures != labels.temperatures:
            self._note(
                "WARNING: labels come through vLLM's public API, so normalisers are exact at T=1 only; the "
                'store is marked so. teacher.capture = "in_engine" makes this an error'
            )
        self._scheduler.add_worker(event.worker_id)

    def _died(self, event: WorkerDied) -> None:
        now = time.monotonic()
        kind = "engine_died" if event.engine else "worker_lost"
        self._log.write(
            kind,
            worker=event.worker_id,
            reason=event.reason,
            leases=[lease.unit.unit_id for lease in self._scheduler.leases_of(event.worker_id)],
        )
        self._tally.count_failure(kind, f"{event.worker_id}: {event.reason}")
        self._note(f"{event.worker_id} is lost and what it held is labeled anew: {event.reason}")
        self._close_account(event.worker_id)
        if event.engine:
            self._scheduler.engine_died(event.worker_id, event.culprits, event.reason, now)
        else:
            self._scheduler.lost_worker(event.worker_id, now)

    def _close_account(self, worker_id: str) -> None:
        """Keep what a worker that is gone has done."""
        self._tally.forget(worker_id)
        self._last_progress.pop(worker_id, None)

    def _ended(self, event: LeaseEnded) -> None:
        now, worker_id = time.monotonic(), event.worker_id
        match event.result:
            case GaveBack(lease_id):
                self._scheduler.gave_back(lease_id, now)
                self._log.write("gave_back", lease=lease_id, worker=worker_id)
            case PassedTrial(lease_id, engine_sec):
                self._scheduler.passed_trial(lease_id, now)
                self._log.write(
                    "passed_trial", lease=lease_id, worker=worker_id, engine_sec=round(engine_sec, 3)
                )
            case Committed() as result:
                if self._scheduler.committed(result.lease_id, now):
                    self._take_up(result)
                self._log.write(
                    "committed",
                    lease=result.lease_id,
                    worker=worker_id,
                    won=result.won,
                    engine_sec=round(result.engine_sec, 3),
                    own_sec=round(result.own_sec, 3),
                    shard=asdict(result.entry),
                )

    def _take_up(self, result: Committed) -> None:
        """Count a unit that was not committed before."""
        self._failures_in_row = 0
        self._tally.count_result(result)
        for reject in result.rejects:
            self._log.write("rejected", unit=result.entry.unit_id, **asdict(reject))
            if len(self._refused_examples) < MOST_EXAMPLES and not reject.kind.startswith("filter_"):
                self._refused_examples.append(reject)
        self._setup.committed_one(result.entry)
        if self._tally.units_of_run % COMPACT_EVERY_UNITS == 0:
            self._setup.compact_beside()
        self._check_rejects()

    def _end_expired(self) -> None:
        for lease in self._scheduler.expired(time.monotonic()):
            if lease.worker_id in self._scheduler.workers:
                self._end(lease)

    def _end(self, lease: Lease) -> None:
        reason = f"no progress on unit {lease.unit.unit_id} for {self._job.workers.lease_sec:g} s"
        for event in self._pool.end(lease.worker_id, reason):
            self._handle(event)

    def _count_failure_in_row(self, reason: str) -> None:
        self._failures_in_row += 1
        if self._failures_in_row >= max(HOPELESS_FAILURES, 2 * self._job.workers.replicas):
            raise JobFailedError(
                f"{self._failures_in_row} units failed one after another, the last with: {reason}. Correct "
                "the cause and run the same command again, what is labeled stays"
            )

    def _check_rejects(self) -> None:
        """Records that the engines refused count with those of the planning; filtered ones do not."""
        limits = self._job.limits
        check_reject_share(
            self._setup.totals.num_records,
            self._tally.refused,
            self._refused_examples,
            max_share=limits.max_reject_share,
            min_records=limits.min_records,
            remedy=f"See {REJECTS_NAME} of the store; correct what refuses them, or the input",
        )
