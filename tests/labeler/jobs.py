"""Labeling jobs as a user starts them: `python -m labeler run` in a process of its own, and its parts to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeler.status import JobStatus, read_status
from logitstore.errors import StoreNotFoundError
from logitstore.store import LogitStore

TIMEOUT_SEC = 110.0


def write_records(path: Path, count: int, *, start: int = 0, response_bytes: int = 40) -> None:
    """Records with ids "0", "1", ... and responses of slowly varying length."""
    with path.open("a") as file:
        for i in range(start, start + count):
            response = (f"answer {i} " * response_bytes)[: response_bytes + i % 7]
            file.write(json.dumps({"uid": str(i), "prompt": f"question {i}", "response": response}) + "\n")


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


def command(overrides: Sequence[str], *flags: str) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "labeler", "run", *sets, *flags]


def environment() -> dict[str, str]:
    dropped = ("RAY_ADDRESS",)
    return {name: value for name, value in os.environ.items() if name not in dropped}


def run_job(
    overrides: Sequence[str], *flags: str, timeout_sec: float = TIMEOUT_SEC
) -> subprocess.CompletedProcess[str]:
    """The job to its end; a timeout ends it and what it started."""
    with started(overrides, *flags) as job:
        out, err = job.process.communicate(timeout=timeout_sec)
        return subprocess.CompletedProcess(job.process.args, job.process.returncode, out, err)


class Job:
    """A running `python -m labeler run`."""

    def __init__(self, overrides: Sequence[str], *flags: str) -> None:
        # A session of its own, so that whatever is left of it can be ended as a group.
        self.process = subprocess.Popen(
            command(overrides, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )

    def processes(self) -> list[tuple[int, str]]:
        """(process id, command line) of everything the job started, however deep."""
        children: dict[int, list[int]] = {}
        lines: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
        found: list[int] = []
        waiting = [self.process.pid]
        while waiting:
            descendants = children.get(waiting.pop(), [])
            found += descendants
            waiting += descendants
        return [(process_id, lines[process_id]) for process_id in found if process_id in lines]

    def actors(self) -> list[int]:
        """Process ids of the workers' actors."""
        return [process_id for process_id, line in self.processes() if line.startswith("ray::Worker")]

    def ray_parts(self, name: str) -> list[int]:
        """Process ids of "raylet" or "gcs_server"."""
        return [
            process_id for process_id, line in self.processes() if line.split(" ")[0].endswith(f"/{name}")
        ]

    def finish(self, timeout_sec: float = TIMEOUT_SEC) -> tuple[int, str]:
        """Exit status and everything it said."""
        out, err = self.process.communicate(timeout=timeout_sec)
        return self.process.returncode, out + err

    def kill(self) -> None:
        """`kill -9` of the driver alone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def started(overrides: Sequence[str], *flags: str) -> Iterator[Job]:
    """A job, of which nothing is left afterwards."""
    job = Job(overrides, *flags)
    try:
        yield job
    finally:
        for process_id, _ in [*job.processes(), (job.process.pid, "")]:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        job.process.wait(10)
        for stream in (job.process.stdout, job.process.stderr):
            if stream is not None:
                stream.close()


def wait_for(what: Callable[[], bool], job: Job, timeout_sec: float = TIMEOUT_SEC) -> None:
    """Until `what` holds. Fails if the job ends before, or the time is up."""
    deadline = time.monotonic() + timeout_sec
    while not what():
        if job.process.poll() is not None:
            raise AssertionError(f"the job ended with {job.process.returncode}: {job.finish()[1]}")
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.05)


def units_done(store: Path) -> int:
    """Commit records on disk, cheaply."""
    return len(list((store / "commits").glob("*.json"))) if (store / "commits").exists() else 0


def status_of(store: Path) -> JobStatus | None:
    try:
        return read_status(str(store))
    except StoreNotFoundError:
        return None


def events(store: Path, name: str) -> list[dict[str, Any]]:
    """The events of that name in the logs of all the store's runs."""
    found: list[dict[str, Any]] = []
    for path in sorted((store / "logs").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [event for event in found if event["event"] == name]


def labeled_ids(store: Path) -> list[str]:
    return [sequence.record_id for sequence in LogitStore.open(store).iter_sequences()]


def verify(store: Path | str, input_file: Path) -> subprocess.CompletedProcess[str]:
    """`python -m logitstore verify STORE --against INPUT`."""
    arguments = [sys.executable, "-m", "logitstore", "verify", str(store), "--against", str(input_file)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False)


def assert_exactly_once(tmp_path: Path, count: int) -> None:
    """Every one of `count` records has its labels once, as the verifier and the store itself see it."""
    found = labeled_ids(tmp_path / "store")
    assert len(found) == count
    assert set(found) == {str(i) for i in range(count)}
    check = verify(tmp_path / "store", tmp_path / "in.jsonl")
    assert check.returncode == 0, check.stdout + check.stderr
