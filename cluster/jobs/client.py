"""Ray's Jobs API as this project uses it: typed jobs, and errors that say what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import ClusterError, ClusterUnreachableError, JobNotFoundError
from cluster.jobs import access
from cluster.jobs.access import bearer_header, find_token
from cluster.jobs.submission import OWNER_KEY, RESUMES_KEY, STORE_KEY, Submission

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

CONNECT_TIMEOUT_SEC = 5.0
POLL_SEC = 1.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
EXIT_STATUS_OF_STATE = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 4}
DEFAULT_PORT = 8265


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """One labeling job as the cluster knows it."""

    submission_id: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    store: str
    """URI of the store it fills."""
    started: str
    """UTC, ISO 8601 to the second; "" before it has started."""
    seconds: float
    """From its start to its end, or to now."""
    exit_code: int | None
    """The labeler's own exit status, once it has one."""
    resumes: str | None
    """Id of the job that it continues."""
    owner: str
    """Who submitted it; "" where nobody said."""
    metadata: dict[str, str]

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class ClusterClient:
    """A connection to one cluster. Every method raises ClusterUnreachableError when it is gone."""

    def __init__(self, address: str) -> None:
        self.address = normalise_address(address)
        _refuse_silent_address(self.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _require_ray()
        with _reached(self.address):
            self._client, self._headers = _connect(self.address)

    def head_is_here(self) -> bool:
        """Whether the head is this machine and not at the other end of a tunnel, so that files and
        interpreter are the same."""
        if not is_loopback(self.address):
            return False
        with _reached(self.address):
            nodes = list_nodes(self.address, self._headers)
        heads = [node for node in nodes if node["raylet"].get("isHeadNode")]
        return any(head["raylet"]["nodeManagerHostname"] == socket.gethostname() for head in heads)

    def submit(self, submission: Submission) -> str:
        with _reached(self.address):
            return self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.submission_id,
                runtime_env=submission.runtime_env,
                metadata=submission.metadata,
            )

    def jobs(self) -> list[ClusterJob]:
        """The labeling jobs, newest first; what else runs on the cluster is left out."""
        with _reached(self.address):
            details = self._client.list_jobs()
        ours = [job for job in details if job.submission_id and STORE_KEY in (job.metadata or {})]
        ours.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [_job(job) for job in ours]

    def job(self, submission_id: str) -> ClusterJob:
        """Raises JobNotFoundError, naming the jobs there are."""
        jobs = self.jobs()
        for job in jobs:
            if job.submission_id == submission_id:
                return job
        known = ", ".join(job.submission_id for job in jobs[:10]) or "none"
        raise JobNotFoundError(
            f"{self.address} knows no labeling job {submission_id!r}; it knows: {known}. A restarted cluster "
            "forgets its jobs, but not their stores: submit the same job file again to resume"
        )

    def stop(self, submission_id: str) -> None:
        """Ask the job to drain and end; returns at once."""
        with _reached(self.address):
            self._client.stop_job(submission_id)

    def wait(
        self, submission_id: str, *, timeout_sec: float | None = None, on_change: Callable[[ClusterJob], None]
    ) -> ClusterJob:
        """The job once it has ended; `on_change` sees every new state. Raises TimeoutError."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        state = ""
        while True:
            job = self.job(submission_id)
            if job.state != state:
                state = job.state
                on_change(job)
            if job.has_ended:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {submission_id} is still {state} after {timeout_sec:.0f} s")
            time.sleep(POLL_SEC)

    def logs(self, submission_id: str) -> str:
        self.job(submission_id)
        with _reached(self.address):
            return self._client.get_job_logs(submission_id)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> ClusterJob:
        """Write the job's log as it grows, until the job has ended."""
        num_written = 0
        while True:
            num_written += asyncio.run(self._tail(submission_id, write, num_written))
            job = self.job(submission_id)
            if job.has_ended:
                rest = self.logs(submission_id)[num_written:]
                write(rest)
                return job
            time.sleep(POLL_SEC)

    async def _tail(self, submission_id: str, write: Callable[[str], None], skip: int) -> int:
        """Pass on what comes after `skip` characters until the connection ends; how many passed."""
        import aiohttp

        num_seen = 0
        try:
            async for text in self._client.tail_job_logs(submission_id):
                fresh = text[max(0, skip - num_seen) :]
                num_seen += len(text)
                write(fresh)
        except (RuntimeError, aiohttp.ClientError):
            # The job is not there yet, or the connection was cut: the caller looks at the job's state.
            pass
        return max(0, num_seen - skip)


def normalise_address(address: str) -> str:
    """`http://HEAD:8265` for `HEAD` and `HEAD:8265`, and for what is already whole.

    Raises:
        ClusterUnreachableError: the text is no such address.
    """
    text = address if "://" in address else f"http://{address}"
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
        parts = parts._replace(scheme="")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ClusterUnreachableError(
            f"address {address!r} is not the dashboard of a Ray cluster; it must look like http://HEAD:8265"
        )
    return f"{parts.scheme}://{parts.hostname}:{port or (443 if parts.scheme == 'https' else DEFAULT_PORT)}"


def list_nodes(address: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    """The nodes as the dashboard describes them. Raises requests.RequestException, KeyError, ValueError."""
    import requests

    answer = requests.get(f"{address}/nodes", params={"view": "summary"}, headers=headers, timeout=5)
    return answer.json()["data"]["summary"]


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own; another machine may be behind it, through a tunnel."""
    host = urlsplit(normalise_address(address)).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _refuse_silent_address(address: str) -> None:
    """Fail within seconds where Ray's client would wait without limit."""
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_TIMEOUT_SEC):
            return
    except OSError as error:
        raise ClusterUnreachableError(
            f"no Ray cluster answers at {address} ({error}); check that the head runs, that its dashboard "
            "is on (ray start --head --dashboard-host) and that the port is reachable, for example through "
            "ssh -L 8265:localhost:8265 HEAD"
        ) from None


def _require_ray() -> None:
    try:
        import ray.job_submission  # noqa: F401
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"submitting needs Ray's client ({error.name} is missing): pip install 'ray[default]' in the "
            "cluster's version"
        ) from None
    for handler in logging.getLogger("ray").handlers:  # else it tells of every upload and connection
        handler.setLevel(logging.WARNING)


def _connect(address: str) -> tuple[JobSubmissionClient, dict[str, str]]:
    """The client, and the headers by which the cluster knows it."""
    import requests
    from ray.job_submission import JobSubmissionClient

    # The token is not shown to a server that does not ask for one.
    asks = requests.get(f"{address}/api/version", timeout=5).status_code == requests.codes.unauthorized
    headers = bearer_header(find_token()) if asks else {}
    return JobSubmissionClient(address, headers=headers), headers


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Turn the ways Ray's client fails into two: the cluster is gone, or it refused."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} asks for a token and has not accepted yours; {access.HELP}"
        ) from None
    except (TimeoutError, ConnectionError, requests.exceptions.RequestException) as error:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} stopped answering or is no Ray cluster ({type(error).__name__}: "
            f"{str(error)[:200]}); jobs whose head died are resumed by submitting the same job file again"
        ) from None
    except RuntimeError as error:
        raise ClusterError(f"the Ray cluster at {address} refused: {str(error)[:500]}") from None


def _job(details: JobDetails) -> ClusterJob:
    metadata = dict(details.metadata or {})
    start_sec = (details.start_time or 0) / 1000
    end_sec = details.end_time / 1000 if details.end_time else time.time()
    return ClusterJob(
        submission_id=details.submission_id or "",
        state=str(details.status.value if hasattr(details.status, "value") else details.status),
        message=details.message or "",
        store=metadata[STORE_KEY],
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start_sec)) if start_sec else "",
        seconds=max(0.0, end_sec - start_sec) if start_sec else 0.0,
        exit_code=details.driver_exit_code,
        resumes=metadata.get(RESUMES_KEY),
        owner=metadata.get(OWNER_KEY, ""),
        metadata=metadata,
    )
