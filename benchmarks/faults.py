"""How long a job takes to recover from a killed worker and from a killed driver.

Three runs of one small job on a Ray cluster of its own, with the stand-in teacher so that the time
measured is the labeler's and not a model's loading: undisturbed, with one actor killed by SIGKILL, and
with the driver killed and the same command given again. After each, the store must hold every unit once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.plots import plot
from benchmarks.results import Figure, Result, publish
from logitstore.errors import StoreNotFoundError
from logitstore.store import LogitStore

RECORDS = {False: 320, True: 96}
"""By --quick; units hold eight records."""
UNIT_SIZE = 8
SECONDS_PER_TOKEN = 0.004
WORDS_PER_RECORD = 12
RUN_LIMIT_SEC = 240
WAIT_LIMIT_SEC = 120
DRIVER_LEASE_SEC = 5


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the job's log."""

    time_sec: float
    """Unix time."""
    name: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every measurement takes."""


def run(args: argparse.Namespace) -> int:
    num_records = RECORDS[args.quick]
    with tempfile.TemporaryDirectory() as folder:
        prompts = _write_prompts(Path(folder), num_records)
        undisturbed = _undisturbed(prompts, Path(folder) / "undisturbed", num_records)
        actor_sec, actor_total = _killed_actor(prompts, Path(folder) / "actor", num_records)
        driver_sec, driver_total = _killed_driver(prompts, Path(folder) / "driver", num_records)
    figures = [
        Figure.of("undisturbed_sec", undisturbed, "s"),
        Figure.of("actor_back_sec", actor_sec, "s"),
        Figure.of("actor_kill_costs_sec", max(actor_total - undisturbed, 0.0), "s"),
        Figure.of("driver_back_sec", driver_sec, "s"),
        Figure.of("driver_kill_costs_sec", max(driver_total - undisturbed, 0.0), "s"),
    ]
    with plot(args.out / "faults.svg", "Seconds until work goes on", "", "seconds") as axes:
        axes.bar(["actor killed", "driver killed,\nstarted again"], [actor_sec, driver_sec], width=0.5)
    result = Result.of(
        "faults",
        meaning="What a kill costs: seconds until the lost part works again, and added to the whole job.",
        columns=("what is killed", "seconds until a new unit is at work", "seconds of the whole job"),
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
            "Afterwards every unit was there once, and the log shows no unit committed twice.",
            f"The driver's lease lasts {DRIVER_LEASE_SEC} s here (default 30); a successor waits "
            "for its end.",
        ],
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _undisturbed(prompts: Path, store: Path, num_records: int) -> float:
    started = time.perf_counter()
    with _driver(prompts, store) as driver:
        _finish(driver)
    _check_store(store, num_records)
    return time.perf_counter() - started


def _killed_actor(prompts: Path, store: Path, num_records: int) -> tuple[float, float]:
    """(seconds from the kill until a replacement got a unit, seconds of the whole job)."""
    started = time.perf_counter()
    with _driver(prompts, store) as driver:
        _wait_for_units(store, driver)
        victim = _actors(driver)[0]
        killed_sec = time.time()
        victim.send_signal(signal.SIGKILL)
        _finish(driver)
    _check_store(store, num_records)
    ready = [event.time_sec for event in _events(store) if event.name == "worker_ready"]
    back = [ready_sec for ready_sec in ready if ready_sec > killed_sec]
    if not back:
        raise RuntimeError("no worker came back after the kill; the job finished with the other one alone")
    return min(back) - killed_sec, time.perf_counter() - started


def _killed_driver(prompts: Path, store: Path, num_records: int) -> tuple[float, float]:
    """(seconds from the second start until a unit was leased, seconds of both runs)."""
    started = time.perf_counter()
    with _driver(prompts, store) as driver:
        _wait_for_units(store, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    again_sec = time.time()
    with _driver(prompts, store) as driver:
        _finish(driver)
    _check_store(store, num_records)
    leased = [event.time_sec for event in _events(store) if event.name == "leased"]
    return min(sec for sec in leased if sec > again_sec) - again_sec, time.perf_counter() - started


def _write_prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for index in range(count):
            words = " ".join(f"word{index}" for _ in range(WORDS_PER_RECORD))
            file.write(json.dumps({"id": f"record-{index}", "text": words}) + "\n")
    return path


@contextmanager
def _driver(prompts: Path, store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m labeler run` in a process group of its own, of which nothing is left at the end."""
    settings = {
        "teacher.engine": "fake",
        "teacher.fake.seconds_per_token": SECONDS_PER_TOKEN,
        "input.uri": prompts,
        "input.kind": "text",
        "input.id": "id",
        "labels.top_k": 8,
        "output.uri": store,
        "output.unit_size": UNIT_SIZE,
        "workers.replicas": 2,
        "workers.driver_lease_sec": DRIVER_LEASE_SEC,
    }
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "labeler", "run", *overrides]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in _family(process.pid):
            child.kill()
        process.wait()


def _family(session: int) -> list[psutil.Process]:
    """Processes of a session: what a driver started, even where their parent is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def _actors(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The Ray workers that run our actors: Ray names such a process after its class."""
    children = psutil.Process(driver.pid).children(recursive=True)
    actors = [child for child in children if "".join(child.cmdline()[:1]).startswith("ray::Worker")]
    if not actors:
        raise RuntimeError("the driver runs no actor to kill; is the job finished already?")
    return actors


def _wait_for_units(store: Path, driver: subprocess.Popen[bytes]) -> None:
    """Until the store holds a few units, so that both actors are at work."""
    deadline = time.monotonic() + WAIT_LIMIT_SEC
    while time.monotonic() < deadline and driver.poll() is None:
        try:
            if len(LogitStore.open(str(store)).shards()) >= 3:
                return
        except StoreNotFoundError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the job committed no three units within {WAIT_LIMIT_SEC} s (status {driver.poll()})")


def _finish(driver: subprocess.Popen[bytes]) -> None:
    _, errors = driver.communicate(timeout=RUN_LIMIT_SEC)
    if driver.returncode:
        raise RuntimeError(f"the job ended with status {driver.returncode}: {errors.decode()[-2000:]}")


def _check_store(store: Path, num_records: int) -> None:
    """Every record is labeled, and the log shows no unit committed twice."""
    committed = [event for event in _log(store) if event["event"] == "committed" and event["won"]]
    units = [event["shard"]["unit_id"] for event in committed]
    if len(set(units)) != len(units):
        raise RuntimeError(f"{store}: a unit was committed twice")
    labeled = sum(entry.num_sequences for entry in LogitStore.open(str(store)).shards())
    if labeled != num_records:
        raise RuntimeError(f"{store} holds {labeled} of {num_records} records")


def _events(store: Path) -> list[Event]:
    return [Event(datetime.fromisoformat(one["time"]).timestamp(), one["event"]) for one in _log(store)]


def _log(store: Path) -> list[dict]:
    lines = [
        line for file in sorted(store.glob("logs/run-*.jsonl")) for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]
