"""A labeling job from its configuration to a finished store: check, plan, label, sum up.

Running it again goes on where it stopped: what is committed is never labeled again.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from labeler.config.loading import JobConfig, resolved, settings_without_effect, with_absolute_paths
from labeler.driver.in_flight import units_in_flight
from labeler.driver.plan_pass import PlanPass, contents_in_words, why_nothing
from labeler.driver.progress import ProgressView
from labeler.driver.scheduler import LeasePolicy, Scheduler
from labeler.driver.stop import StopRequest
from labeler.errors import LabelerError, NothingToLabelError, OtherSettingsError, StoppedError
from labeler.job.driver_lease import DriverLease, acquire
from labeler.job.logs import JobLog, log_path
from labeler.job.money.runs import RunWriter
from labeler.job.money.spending import Spending
from labeler.job.status import Tally, snapshot, utc_now
from labeler.job.status_writer import StatusWriter
from labeler.job.store_setup import StoreSetup
from labeler.on_ray.lacking import check_engine_here
from labeler.patience import persistently
from labeler.planning.plan import Plan, PlanTotals
from labeler.planning.preflight import Prepared, prepare
from labeler.prompting.segment_marks import NO_MARKS, find_marks
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.common.secrets import redact_uri
from logitstore.errors import CorruptManifestError, StoreChangedError
from logitstore.job_objects import (
    REJECTS_NAME,
    STATUS_NAME,
    JobState,
    JobStatus,
    WorkerView,
)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run shows itself."""

    quiet: bool = False
    log_file: str | None = None
    relabel_changed: bool = False
    """Label records again whose content changed since they were labeled."""
    also_counted: tuple[str, ...] = ()
    """Stores whose money counts for `limits.max_cost` too: those of a recipe's other steps."""


def run(job: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
    """Label everything of the job that is not labeled yet.

    Raises ConfigError, StoreError or OtherSettingsError for what is wrong before the store is touched; what
    is found wrong later is in the status, like any other end.
    """
    with ProgressView(quiet=options.quiet) as view, StopRequest() as stop:
        if lack := check_engine_here(job):
            view.note(lack, trouble=True)
        if unused := settings_without_effect(job):
            view.note(unused, trouble=True)
        prepared = prepare(job)
        if prepared.unnamed_labels:
            view.note(prepared.unnamed_labels, trouble=True)
        with (
            _driving(prepared, job.workers.driver_lease_sec, view.note) as lease,
            contextlib.closing(JobLog(log_path(prepared.objects, options.log_file))) as log,
        ):
            return _Run(job, prepared, lease, view, stop, log, options).run()


@contextlib.contextmanager
def _driving(prepared: Prepared, lease_sec: float, note: Callable[[str], None]) -> Iterator[DriverLease]:
    """The driver's lease of the store, given back at the end, whatever the end is."""
    lease = acquire(prepared.objects, lease_sec, note)
    try:
        yield lease
    finally:
        lease.release()


class _Run:
    """One run of a job that holds the driver's lease."""

    def __init__(
        self,
        job: JobConfig,
        prepared: Prepared,
        lease: DriverLease,
        view: ProgressView,
        stop: StopRequest,
        log: JobLog,
        options: RunOptions,
    ) -> None:
        self._job = job
        self._prepared = prepared
        self._lease = lease
        self._view = view
        self._stop = stop
        self._log = log
        self._relabel_changed = options.relabel_changed
        self._plan = Plan(prepared.objects)
        self._tally = Tally()
        self._started = utc_now()
        self._spending = Spending(job, prepared.objects, self._tally, self._trouble, options.also_counted)
        self._status = StatusWriter(prepared.objects, lease, RunWriter(prepared.objects, self._started))

    def run(self) -> tuple[ExitStatus, JobStatus]:
        state: JobState = "failed"
        exit_status, message = ExitStatus.FAILED, ""
        setup: StoreSetup | None = None
        self._log.write("started", job=resolved(self._job))
        try:
            self._spending.begin()
            totals = self._plan_pass().make()
            setup = StoreSetup(self._job, self._prepared, totals, self._view.note)
            labeled = self._label(totals, setup)
            self._lease.is_held()  # Another driver may have done everything while this one was paused.
            self._lease.raise_if_lost()
            state, exit_status, message = labeled
        except OtherSettingsError as error:
            self._status.stop()  # the store is another job's, and its status stays
            self._log.write("refused", message=str(error))
            raise
        except (ConfigError, LabelerError, StoreChangedError, CorruptManifestError) as error:
            state = "stopped" if isinstance(error, StoppedError) else "failed"
            exit_status, message = ExitStatus(error.exit_status), str(error)
        except OSError as error:
            message = (
                f"the storage fails: {error}. What is labeled stays; run the same command again to go on"
            )
        status = replace(self._look(state, [], 0, message), tokens_per_second=self._rate_of_run())
        self._write_end(setup, status)
        self._log.write("ended", state=state, exit_status=int(exit_status), message=message)
        if exit_status not in (ExitStatus.DONE, ExitStatus.STOPPED):
            self._view.note(f"error: {message}", trouble=True)
        return exit_status, status

    def _rate_of_run(self) -> float:
        """Tokens a second over the time that this run's engines were held; 0 where none was."""
        held_sec = self._spending.replica_sec / max(self._job.workers.replicas, 1)
        return round(self._tally.tokens_seen / held_sec, 2) if held_sec else 0.0

    def _plan_pass(self) -> PlanPass:
        return PlanPass(
            self._job,
            self._prepared,
            self._plan,
            self._tally,
            self._log,
            self._view.note,
            self._show_planning,
            self._relabel_changed,
        )

    def _show_planning(self, num_records: int) -> None:
        message = f"{num_records:,} records read"
        status = self._look("planning", [], 0, message)
        self._status.put(status)
        self._view.show(status)
        if self._stop.requested:
            raise StoppedError("stopped while planning; run the same command again to go on")

    def _label(self, totals: PlanTotals, setup: StoreSetup) -> tuple[JobState, ExitStatus, str]:
        if not totals.num_units:
            raise NothingToLabelError(why_nothing(self._job, totals, f"in {REJECTS_NAME} of the store"))
        tally = self._tally
        tally.units_total, tally.tokens_total = totals.num_units, totals.num_tokens
        tally.count_planned_rejects(totals.rejects_by_kind)
        done: set[str] = set()
        store = setup.open_existing()
        if store is not None:
            shards = store.shards()
            tally.count_all_stored(shards)
            done.update(shards.unit_ids())
            tally.count_rejects(store.rejects())
        self._view.note(
            f"{totals.num_planned:,} records in {totals.num_units:,} units, {tally.units_done:,} done, "
            f"{totals.num_rejects:,} rejected; {self._job.workers.replicas} replicas"
        )
        for text in contents_in_words(totals):
            self._view.note(text, trouble=True)
        workers = self._job.workers
        in_flight = units_in_flight(self._job, totals)
        if in_flight.warning:
            self._view.note(in_flight.warning, trouble=True)
        policy = LeasePolicy(leases_per_worker=in_flight.leases, lease_sec=workers.lease_sec)
        units = self._plan.units(self._job.output.retry_sec)
        scheduler = Scheduler(units, done.__contains__, policy)
        if scheduler.is_finished:
            return "finished", ExitStatus.DONE, f"everything was labeled before; {self._next_command()}"
        if reached := self._spending.reached():
            return "stopped", ExitStatus.STOPPED, f"{reached}; raise it to go on"
        all_done = self._run_workers(scheduler, setup)
        setup.finish()
        if not all_done:
            return "stopped", ExitStatus.STOPPED, self._how_to_go_on()
        if scheduler.failed:
            shown = (f"unit {failed.unit.unit_id}: {failed.reason}" for failed in scheduler.failed[:3])
            message = (
                f"{len(scheduler.failed)} units could not be labeled, for example {'; '.join(shown)}. "
                "Correct the cause and run the same command again, what is labeled stays"
            )
            return "failed", ExitStatus.FAILED, message
        return "finished", ExitStatus.DONE, f"{self._spending.cost()}; {self._next_command()}"

    def _how_to_go_on(self) -> str:
        """After a stop. Runs that each end before their first unit would come and go for ever."""
        again = "run the same command again to go on"
        if self._tally.units_of_run or not self._spending.replica_sec:
            return again
        return (
            f"{again}. This run held its engines for {self._spending.replica_sec:,.0f} s and finished no "
            "unit: if that comes again, give it more time (a scheduler's time limit, workers.drain_sec), or "
            "make the units of a new store smaller (output.unit_size)"
        )

    def _next_command(self) -> str:
        store = shlex.quote(redact_uri(self._job.output.uri))
        return (
            f"look at it: penumbra store view {store}; train a student: penumbra train run --student MODEL "
            f"--labels {store} --out build/student"
        )

    def _run_workers(self, scheduler: Scheduler, setup: StoreSetup) -> bool:
        """True if every unit was committed or given up; False if the job was told to stop."""
        # Ray and what needs it take seconds to import, which a finished job does not need.
        from labeler.driver.actors.pool import ActorPool
        from labeler.driver.loop import LabelingLoop
        from labeler.driver.metrics import JobMetrics
        from labeler.on_ray.gpus import check_gpus
        from labeler.on_ray.node_probes import check_nodes
        from labeler.on_ray.runtime import ray_for

        with ray_for(self._job):
            self._stop.take_again()
            if warning := check_gpus(self._job, is_stopped=lambda: self._stop.requested):
                self._trouble(warning)
            engine_version = "" if setup.store is None else setup.store.manifest.teacher.engine_version
            probes = check_nodes(self._job, engine_version, self._trouble, lambda: self._stop.requested)
            tokenizer = self._prepared.tokenizer
            marks = find_marks(tokenizer, self._job.labels.reasoning) if self._job.has_marks else NO_MARKS
            pool = ActorPool(with_absolute_paths(self._job), tokenizer.ends, marks=marks, probes=probes)
            loop = LabelingLoop(
                self._job,
                scheduler,
                pool,
                setup,
                self._tally,
                self._log,
                self._trouble,
                self._spending.reached,
            )
            metrics = JobMetrics(self._job.output.uri)

            def show() -> None:
                self._spending.replica_sec = pool.held_sec
                status = self._look(loop.state, pool.views(), scheduler.num_held, pool.lack_of_room)
                self._view.show(status)
                self._status.put(status)
                metrics.update(status)

            self._lease.is_working = lambda: pool.is_in_contact
            with self._spending.watched():
                try:
                    all_done = loop.run(self._stop, self._lease, show)
                finally:
                    self._spending.replica_sec = pool.held_sec
                    pool.close()
            self._lease.is_working = lambda: True
            return all_done

    def _trouble(self, text: str) -> None:
        self._view.note(text, trouble=True)

    def _write_end(self, setup: StoreSetup | None, status: JobStatus) -> None:
        """Rejects and status, unless another driver has the store now."""

        def write() -> None:
            if setup is not None and self._lease.is_held():
                setup.write_rejects(self._plan.rejects())
            self._status.close(status)

        try:
            persistently(write, self._job.output.retry_sec)
        except OSError as error:
            self._trouble(f"{REJECTS_NAME} and {STATUS_NAME} of the store could not be written: {error}")

    def _look(self, state: JobState, workers: list[WorkerView], queue_depth: int, message: str) -> JobStatus:
        return snapshot(
            self._tally,
            state=state,
            started=self._started,
            workers=workers,
            queue_depth=queue_depth,
            cost=self._spending.cost(),
            message=message,
        )
