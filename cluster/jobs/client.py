"""Ray's Jobs API as this project uses it: typed jobs, and errors that say what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.errors import ClusterError, ClusterTroubleError, ClusterUnreachableError, JobNotFoundError
from cluster.jobs.network.address import Way, is_loopback, refuse_silent_address
from cluster.jobs.network.answers import known_form, reached
from cluster.jobs.network.connection import connect, list_nodes, require_ray
from cluster.jobs.submission import OWNER_KEY, RESUMES_KEY, STORE_KEY, Submission
from labeler.config.loading import WorkersConfig
from labeler.on_ray.room import fits, lack_of_room

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Answer = TypeVar("Answer")

START_PATIENCE_SEC = 60.0
"""How long a cluster that has just come up may be without an agent that takes jobs."""
TROUBLE_PATIENCE_SEC = 60.0
"""How long who waits for a job asks again where the cluster, or a proxy before it, is in trouble."""
QUIET_SEC = 30.0
"""After so long without a word of a log, the cluster is asked for it, and the connection made anew."""
POLL_SEC = 1.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
EXIT_STATUS_OF_STATE = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 4}


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

    def __init__(self, way: Way) -> None:
        self.address = way.url
        refuse_silent_address(way)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        require_ray()
        with reached(self.address):
            self._client, self._way = connect(way)

    def head_is_here(self) -> bool:
        """Whether the head is this machine and not at the other end of a tunnel, so that files and
        interpreter are the same."""
        if not is_loopback(self.address):
            return False
        nodes = self.nodes()
        heads = [node for node in nodes if node["raylet"].get("isHeadNode")]
        return any(head["raylet"]["nodeManagerHostname"] == socket.gethostname() for head in heads)

    def nodes(self) -> list[dict[str, Any]]:
        """The machines there are now, as the dashboard describes them."""
        with reached(self.address), known_form(self.address):
            return list_nodes(self._way)

    def lack_of_machines(self, workers: WorkersConfig) -> str:
        """Why no replica could be placed on the machines there are now; "" where they are large enough."""
        nodes = self.nodes()
        shown = [
            {"Alive": node["raylet"].get("state") == "ALIVE", "Resources": node["raylet"]["resourcesTotal"]}
            for node in nodes
            if "resourcesTotal" in node["raylet"]
        ]
        return "" if not shown or fits(workers, shown) else lack_of_room(workers, workers.replicas, shown)

    def submit(self, submission: Submission) -> str:
        """Its id, also where the cluster has taken the job and only its answer was lost. A cluster that has
        just come up and takes no jobs yet is asked again for a while."""
        deadline = time.monotonic() + START_PATIENCE_SEC
        while True:
            try:
                with reached(self.address):
                    return self._client.submit_job(
                        entrypoint=submission.entrypoint,
                        submission_id=submission.submission_id,
                        runtime_env=submission.runtime_env,
                        metadata=submission.metadata,
                    )
            except ClusterUnreachableError:
                if self._has_taken(submission.submission_id):
                    return submission.submission_id
                raise
            except ClusterError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SEC)

    def _has_taken(self, submission_id: str) -> bool:
        """Whether the cluster has a job, as far as it answers."""
        try:
            return self.find(submission_id) is not None
        except ClusterError:
            return False

    def jobs(self) -> list[ClusterJob]:
        """The labeling jobs, newest first; what else runs on the cluster is left out."""
        with reached(self.address), known_form(self.address):
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
        with reached(self.address), known_form(self.address):
            self._client.stop_job(submission_id)

    def wait(
        self, submission_id: str, *, timeout_sec: float | None = None, on_change: Callable[[ClusterJob], None]
    ) -> ClusterJob:
        """The job once it has ended; `on_change` sees every new state. Raises TimeoutError.

        Trouble that passes is waited for, as in `follow`: a job may take days.
        """
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        state = ""
        while True:
            job = self._patiently(lambda: self.job(submission_id))
            if job.state != state:
                state = job.state
                on_change(job)
            if job.has_ended:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {submission_id} is still {state} after {timeout_sec:.0f} s")
            time.sleep(POLL_SEC)

    def find(self, submission_id: str) -> JobDetails | None:
        """What Ray knows of a job, a labeling job or not; None where it knows none of this id."""
        with reached(self.address), known_form(self.address):
            known = self._client.list_jobs()
        return next((job for job in known if job.submission_id == submission_id), None)

    def delete(self, submission_id: str) -> None:
        """Make Ray forget a job that has ended. Raises ClusterError where it has not."""
        with reached(self.address), known_form(self.address):
            self._client.delete_job(submission_id)

    def log_of(self, submission_id: str) -> str:
        """The log of a job, a labeling job or not."""
        with reached(self.address), known_form(self.address):
            return self._client.get_job_logs(submission_id)

    def logs(self, submission_id: str) -> str:
        self.job(submission_id)
        return self.log_of(submission_id)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> ClusterJob:
        """Write the job's log as it grows, until the job has ended.

        Where the connection cannot be kept (an ingress without WebSocket), the log is asked for repeatedly.
        """
        num_written = 0
        while True:
            num_written += asyncio.run(self._tail(submission_id, write, num_written))
            job = self._patiently(lambda: self.job(submission_id))
            if job.started or job.has_ended:
                more = self._patiently(lambda: self.log_of(submission_id))[num_written:]
                write(more)
                num_written += len(more)
            if job.has_ended:
                return job
            time.sleep(POLL_SEC)

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Its answer, asked for again for a while where the cluster is in trouble, which is said once.

        A cluster that is gone, and one that refuses, is not asked again.
        """
        deadline = None
        while True:
            try:
                return ask()
            except ClusterTroubleError as error:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + TROUBLE_PATIENCE_SEC
                    print(f"warning: {error}; asking for {TROUBLE_PATIENCE_SEC:g} s more", file=sys.stderr)
                if now > deadline:
                    raise
            time.sleep(POLL_SEC)

    async def _tail(self, submission_id: str, write: Callable[[str], None], skip: int) -> int:
        """Pass on what comes after `skip` characters until the connection ends, or has been quiet for a
        while, as one is for ever that was cut without a word; how many passed."""
        import aiohttp

        num_seen = 0
        try:
            async with asyncio.timeout(QUIET_SEC) as quiet:
                async for text in self._client.tail_job_logs(submission_id):
                    quiet.reschedule(asyncio.get_running_loop().time() + QUIET_SEC)
                    fresh = text[max(0, skip - num_seen) :]
                    num_seen += len(text)
                    write(fresh)
        except (TimeoutError, aiohttp.ClientError):
            pass  # The job is not there yet, or the connection is of no use: the caller looks at both.
        return max(0, num_seen - skip)


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
