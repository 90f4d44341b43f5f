"""A labeling job as a user starts it, in processes of its own that can be found and killed one by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WAIT_LIMIT_SEC = 200.0


def command(overrides: Sequence[str], *flags: str) -> list[str]:
    """`penumbra label run --set ...`."""
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-P", "-m", "labeler", "run", *sets, *flags]


class RunningJob:
    """A running `penumbra label run`."""

    def __init__(self, overrides: Sequence[str], *flags: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # A session of its own, so that no signal meant for the starter reaches it.
        self.process = subprocess.Popen(
            command(overrides, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def processes(self) -> list[tuple[int, str]]:
        """(process id, command line) of everything the job started, however deep."""
        children: dict[int, list[int]] = {}
        lines: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
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
        """Process ids of the workers' actors: Ray names such a process after its class."""
        return [process_id for process_id, line in self.processes() if line.startswith("ray::Worker")]

    def finish(self, timeout_sec: float = WAIT_LIMIT_SEC) -> tuple[int, str]:
        """Exit status and everything it said."""
        out, err = self.process.communicate(timeout=timeout_sec)
        return self.process.returncode, out + err

    def kill(self) -> None:
        """`kill -9` of the driver alone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@contextmanager
def started(overrides: Sequence[str], *flags: str) -> Iterator[RunningJob]:
    """A job, of which nothing is left afterwards."""
    job = RunningJob(overrides, *flags)
    try:
        yield job
    finally:
        for process_id, _ in [*job.processes(), (job.process.pid, "")]:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        job.process.wait(60)
        for stream in (job.process.stdout, job.process.stderr):
            if stream is not None:
                stream.close()


def wait_for(what: Callable[[], bool], job: RunningJob, timeout_sec: float = WAIT_LIMIT_SEC) -> None:
    """Until `what` holds. Raises RuntimeError if the job ends before, or the time is up."""
    deadline = time.monotonic() + timeout_sec
    while not what():
        if job.process.poll() is not None:
            raise RuntimeError(f"the job ended with {job.process.returncode}: {job.finish()[1]}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not happen in {timeout_sec:g} s")
        time.sleep(0.05)


def units_done(store: Path) -> int:
    """Commit records of a local store, counted without reading them."""
    return len(list((store / "commits").glob("*.json"))) if (store / "commits").exists() else 0


def verify(store: Path | str, input_file: Path | str) -> subprocess.CompletedProcess[str]:
    """`penumbra store verify STORE --against INPUT`: every record exactly once, or rejected."""
    arguments = [sys.executable, "-P", "-m", "logitstore", "verify", str(store), "--against", str(input_file)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)
