"""How long a job takes to recover from a killed worker and from a killed driver.

Three runs of one small job on a Ray cluster of its own, with the stand-in teacher so that the time
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
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks.jobs.running_job import RunningJob, started, units_done, verify, wait_for
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, publish

RECORDS = {False: 320, True: 96}
"""By --quick; units hold eight records."""
UNIT_SIZE = 8
SECONDS_PER_TOKEN = 0.004
WORDS_PER_RECORD = 12
RUN_LIMIT_SEC = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every measurement takes."""


def run(args: argparse.Namespace) -> int:
    num_records = RECORDS[args.quick]
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
    ]
    with plot(args.out / "faults.svg", "Time until work goes on", "what is killed", "seconds") as axes:
        axes.bar(["one of two actors", "the driver, then started again"], [actor_sec, driver_sec], width=0.5)
    result = Result.of(
        "faults",
        meaning=f"Work goes on {actor_sec:.0f} s after an actor is killed and {driver_sec:.0f} s after a "
        "killed driver is started again.",
        columns=("what is killed", "seconds until work goes on", "seconds of the whole job"),
        rows=[
            ("nothing", None, undisturbed),
            ("one of two actors", actor_sec, actor_total),
            ("the driver, then the same command", driver_sec, driver_total),
        ],
        figures=figures,
        plots=["faults.svg"],
        notes=[
            f"{num_records} records in units of {UNIT_SIZE}, two actors with the stand-in teacher: a real "
            "model's loading comes on top for the actor.",
            "Afterwards every record was there exactly once (`penumbra store verify --against`).",
            "Work goes on when a replacement of the actor is ready, or when the second driver leases a unit; "
            "each was measured once.",
            "The second driver runs on the same machine, so it need not wait for the lease of the first.",
        ],
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


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
        f"input.uri={prompts}",
        "input.kind=text",
        "input.id=id",
        "labels.top_k=8",
        f"output.uri={store}",
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
