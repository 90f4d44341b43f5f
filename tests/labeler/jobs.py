"""Labeling jobs as a user starts them, and what a store holds after them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs.running_job import WAIT_LIMIT_SEC, started, verify
from labeler.config.loading import JobConfig, identity
from labeler.driver.plan_pass import new_planner, read_input
from labeler.job.status import read_status
from labeler.job.store_setup import StoreSetup
from labeler.planning.plan import Plan, SegmentWriter
from labeler.planning.preflight import prepare
from labeler.planning.provenance import provenance_of
from labeler.records import Committed, Lease, WorkUnit
from labeler.worker.actor import Worker
from logitstore.errors import StoreNotFoundError
from logitstore.job_objects import JobStatus
from logitstore.store import LogitStore


def write_records(path: Path, count: int, *, start: int = 0, response_bytes: int = 40) -> None:
    """Records with ids "0", "1", ... and responses of slowly varying length."""
    with path.open("a") as file:
        for i in range(start, start + count):
            response = (f"answer {i} " * response_bytes)[: response_bytes + i % 7]
            file.write(json.dumps({"uid": str(i), "prompt": f"question {i}", "response": response}) + "\n")


def planned(job: JobConfig) -> tuple[Worker, list[WorkUnit], StoreSetup]:
    """The job's plan, as its driver makes it, and a started worker for its units in this process."""
    prepared = prepare(job)
    plan = Plan(prepared.objects)
    made_from = provenance_of(job, prepared.tokenizer)
    plan.claim(identity(job), made_from, has_manifest=False, num_labeled=0)
    known = plan.known()
    planner = new_planner(job, prepared, known, SegmentWriter(prepared.objects, known))
    totals = planner.run(read_input(job), lambda _: None)
    setup = StoreSetup(job, prepared, totals, lambda _: None)
    worker = Worker(job, "worker-0.0", prepared.tokenizer.ends)
    setup.take_description(worker.start(None))
    return worker, list(plan.units()), setup


def label_and_commit(worker: Worker, lease: Lease) -> Committed:
    """What `label_unit` returns where it must have committed."""
    result = worker.label_unit(lease)
    assert isinstance(result, Committed)
    return result


def overrides_for(tmp_path: Path, *more: str) -> list[str]:
    """A job over `in.jsonl` with the stand-in teacher and two replicas; later settings win."""
    base = [
        "teacher.engine=fake",
        f"input.uri='{tmp_path}/in.jsonl'",
        "input.kind=prompt_response",
        "input.id=uid",
        "labels.top_k=8",
        f"output.uri='{tmp_path}/store'",
        "output.unit_size=8",
        "workers.replicas=2",
    ]
    return [*base, *more]


def held(folder: Path, seconds_per_token: float) -> tuple[str, ...]:
    """Overrides of a job in units of four that is this slow until `let_go`."""
    held_by = folder / "slow"
    held_by.touch()
    return (
        f"teacher.fake.seconds_per_token={seconds_per_token}",
        f"teacher.fake.slow_while='{held_by}'",
        "output.unit_size=4",
    )


def let_go(folder: Path) -> None:
    """What is labeled, and what is labeled later, is so at full speed."""
    (folder / "slow").unlink()


def run_job(
    overrides: Sequence[str], *flags: str, timeout_sec: float = WAIT_LIMIT_SEC
) -> subprocess.CompletedProcess[str]:
    """The job to its end; a timeout ends it and what it started."""
    with started(overrides, *flags) as job:
        out, err = job.process.communicate(timeout=timeout_sec)
        return subprocess.CompletedProcess(job.process.args, job.process.returncode, out, err)


def status_of(store: Path) -> JobStatus | None:
    try:
        return read_status(str(store))
    except StoreNotFoundError:
        return None


def events(store: Path, name: str) -> list[dict[str, Any]]:
    """The events of that name in the logs of all the store's runs."""
    return [event for run in runs(store) for event in run if event["event"] == name]


def runs(store: Path) -> list[list[dict[str, Any]]]:
    """The events of each of the store's runs, but for those that are only half written."""
    logs: list[list[dict[str, Any]]] = []
    for path in sorted((store / "logs").glob("*.jsonl")):
        logs.append([])
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                logs[-1].append(json.loads(line))
    return logs


def is_alive(process_id: int) -> bool:
    """A process that runs; not one that nobody has asked for yet since its end."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def labeled_ids(store: Path) -> list[str]:
    return [sequence.record_id for sequence in LogitStore.open(store).iter_sequences()]


def assert_exactly_once(tmp_path: Path, count: int) -> None:
    """Every one of `count` records has its labels once, as the verifier and the store itself see it."""
    found = labeled_ids(tmp_path / "store")
    assert len(found) == count
    assert set(found) == {str(i) for i in range(count)}
    check = verify(tmp_path / "store", tmp_path / "in.jsonl")
    assert check.returncode == 0, check.stdout + check.stderr
