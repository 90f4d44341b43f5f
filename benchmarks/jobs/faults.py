"""What faults do to a store and to a job: schedules of them, and the time until a job goes on.

Each schedule is a random order of operations by two actors over objects in memory, of which some requests and
replies are lost; afterwards the store must be readable and hold every unit whose commit was answered once.

Then three runs of one small job on a Ray cluster of its own, with the stand-in teacher so that the time
measured is the labeler's and not a model's loading: undisturbed, with one actor killed by SIGKILL, and
with the driver killed and the same command given again. After each, the store must hold every record once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from benchmarks.jobs.driver_schedules import NUM_DRIVERS, lease_schedule, status_schedule
from benchmarks.jobs.running_job import RunningJob, started, units_done, verify, wait_for
from benchmarks.jobs.store_schedules import MIXES, HarmError, run_schedule
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, ResultTable, publish

RECORDS = {False: 320, True: 96}
"""By --quick; units hold eight records."""
SCHEDULES = {False: 200, True: 12}
"""Of each kind, by --quick."""
UNIT_SIZE = 8
SECONDS_PER_TOKEN = 0.004
WORDS_PER_RECORD = 12
RUN_LIMIT_SEC = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schedules", type=int, metavar="N", help="of each kind (default 200; --quick: 12)")


def run(args: argparse.Namespace) -> int:
    num_records = RECORDS[args.quick]
    schedules = [
        _tried(what, run_one, args.schedules or SCHEDULES[args.quick]) for what, run_one in KINDS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        prompts = _write_prompts(Path(folder), num_records)
        undisturbed = _undisturbed(prompts, Path(folder) / "undisturbed")
        actor_sec, actor_total = _killed_actor(prompts, Path(folder) / "actor")
        driver_sec, driver_total = _killed_driver(prompts, Path(folder) / "driver")
    figures = [
        Figure.of("undisturbed_sec", undisturbed, "s"),
        Figure.of("actor_back_sec", actor_sec, "s"),
        Figure.of("actor_kill_costs_sec", max(actor_total - undisturbed, 0.0), "s"),
        Figure.of("driver_back_sec", driver_sec, "s"),
        Figure.of("driver_kill_costs_sec", max(driver_total - undisturbed, 0.0), "s"),
        Figure.of("schedules", sum(one.tried for one in schedules), ""),
        Figure.of("schedules_survived", sum(one.survived for one in schedules), ""),
    ]
    with plot(args.out / "faults.svg", "Time until work goes on", "what is killed", "seconds") as axes:
        axes.bar(["one of two actors", "the driver, then started again"], [actor_sec, driver_sec], width=0.5)
    result = Result.of(
        "faults",
        meaning=f"Work goes on {actor_sec:.0f} s after an actor is killed and {driver_sec:.0f} s after a "
        f"killed driver is started again. Of {sum(one.tried for one in schedules):,} random schedules of "
        f"faults {sum(one.survived for one in schedules):,} leave every unit readable and there once.",
        columns=("what is killed", "seconds until work goes on", "seconds of the whole job"),
        rows=[
            ("nothing", None, undisturbed),
            ("one of two actors", actor_sec, actor_total),
            ("the driver, then the same command", driver_sec, driver_total),
        ],
        more_tables=[_schedules_table(schedules)],
        figures=figures,
        plots=["faults.svg"],
        notes=[
            f"{num_records} records in units of {UNIT_SIZE}, two actors with the stand-in teacher: a real "
            "model's loading comes on top for the actor.",
            "Afterwards every record was there exactly once (`logitstore verify --against`).",
            "Work goes on when a replacement of the actor is ready, or when the second driver leases a unit; "
            "each was measured once.",
            "The second driver runs on the same machine, so it need not wait for the lease of the first.",
            "A schedule has 40 operations by one actor, while a second one acts in between; 15% of their "
            "changes and 45% of the replacements of an object lose the request or the reply, or are tried "
            "again by the client after a lost reply. Lost: a unit whose commit was answered is gone.",
            f"Schedules of lease and status have {NUM_DRIVERS} drivers, each suspended when the next begins.",
        ],
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


@dataclass(slots=True)
class Tried:
    """What became of the schedules of one kind."""

    what: str
    tried: int = 0
    num_faults: int = 0
    """Requests and replies lost in the schedules that were survived."""
    unreadable: int = 0
    """The store cannot be read, or something of it is not as it must be."""
    lost: int = 0
    twice: int = 0

    @property
    def survived(self) -> int:
        return self.tried - self.unreadable - self.lost - self.twice


KINDS: dict[str, Callable[[int], int]] = {
    **{f"store, {mix}": partial(run_schedule, mix) for mix in MIXES},
    "driver lease": lease_schedule,
    "status of a job": status_schedule,
}


def _tried(what: str, run_one: Callable[[int], int], count: int) -> Tried:
    tried = Tried(what)
    for seed in range(count):
        tried.tried += 1
        try:
            tried.num_faults += run_one(seed)
        except HarmError as error:
            tried.lost += error.harm == "lost"
            tried.twice += error.harm == "twice"
        except Exception:  # noqa: BLE001 - whatever else went wrong is one more store that is not sound
            tried.unreadable += 1
    return tried


def _schedules_table(schedules: list[Tried]) -> ResultTable:
    return ResultTable.of(
        "Random schedules of lost requests, lost replies and second actors",
        ("schedules over", "tried", "survived", "unreadable or wrong", "lost", "twice", "faults in them"),
        [
            (one.what, one.tried, one.survived, one.unreadable, one.lost, one.twice, one.num_faults)
            for one in schedules
        ],
    )


def _undisturbed(prompts: Path, store: Path) -> float:
    began = time.perf_counter()
    with started(_settings(prompts, store)) as job:
        _finish(job)
    _check_store(store, prompts)
    return time.perf_counter() - began


def _killed_actor(prompts: Path, store: Path) -> tuple[float, float]:
    """(seconds from the kill until a replacement is ready, seconds of the whole job)."""
    began = time.perf_counter()
    with started(_settings(prompts, store)) as job:
        wait_for(lambda: units_done(store) >= 3, job)
        killed_at = time.time()
        os.kill(job.actors()[0], signal.SIGKILL)
        _finish(job)
    _check_store(store, prompts)
    back = [ready_at for ready_at in _times(store, "worker_ready") if ready_at > killed_at]
    if not back:
        raise RuntimeError("no worker came back after the kill; the job finished with the other one alone")
    return min(back) - killed_at, time.perf_counter() - began


def _killed_driver(prompts: Path, store: Path) -> tuple[float, float]:
    """(seconds from the second start until a unit was leased, seconds of both runs)."""
    began = time.perf_counter()
    with started(_settings(prompts, store)) as job:
        wait_for(lambda: units_done(store) >= 3, job)
        job.kill()
    again_at = time.time()
    with started(_settings(prompts, store)) as job:
        _finish(job)
    _check_store(store, prompts)
    leased = [leased_at for leased_at in _times(store, "leased") if leased_at > again_at]
    return min(leased) - again_at, time.perf_counter() - began


def _write_prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for index in range(count):
            words = " ".join(f"word{index}" for _ in range(WORDS_PER_RECORD))
            file.write(json.dumps({"id": f"record-{index}", "text": words}) + "\n")
    return path


def _settings(prompts: Path, store: Path) -> list[str]:
    return [
        "teacher.engine=fake",
        f"teacher.fake.seconds_per_token={SECONDS_PER_TOKEN}",
        f"input.uri='{prompts}'",
        "input.kind=text",
        "input.id=id",
        "labels.top_k=8",
        f"output.uri='{store}'",
        f"output.unit_size={UNIT_SIZE}",
        "workers.replicas=2",
    ]


def _finish(job: RunningJob) -> None:
    exit_status, output = job.finish(RUN_LIMIT_SEC)
    if exit_status:
        raise RuntimeError(f"the job ended with status {exit_status}: {output[-2000:]}")


def _check_store(store: Path, prompts: Path) -> None:
    """Every record is labeled exactly once."""
    verified = verify(store, prompts)
    if verified.returncode:
        raise RuntimeError(f"{store} does not hold every record once: {verified.stdout}{verified.stderr}")


def _times(store: Path, name: str) -> Iterator[float]:
    """Unix time of every event of that name in the job's logs."""
    for file in sorted(store.glob("logs/run-*.jsonl")):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == name:
                yield datetime.fromisoformat(event["time"]).timestamp()
