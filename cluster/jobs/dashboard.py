"""`penumbra cluster dashboard`: the page of a store, or of every store that a cluster's jobs fill.

The page is the viewer's (`penumbra store view`), run as a process of its own; this module tells it,
through a file, which jobs the cluster has.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError, JobRefusedError
from cluster.jobs.client import ClusterClient, ClusterJob
from cluster.jobs.network.address import find_way
from logitstore.common.whole_file import write_whole
from logitstore.processes.with_parent import ending_with_this

REFRESH_SEC = 3.0


def is_cluster_address(text: str) -> bool:
    """Whether the text names a cluster (http://HEAD:8265, HEAD:8265, [::1]:8265) and not a store."""
    is_host = re.fullmatch(r"([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}", text) is not None
    return text.startswith(("http://", "https://")) or (is_host and not Path(text).exists())


def serve(
    target: str, viewer_arguments: Sequence[str], headers: Sequence[str] = (), verify: str | None = None
) -> int:
    """Run the viewer until it is interrupted; its exit status.

    Raises:
        ClusterUnreachableError: nothing answers at an address.
        JobRefusedError: options of a cluster are given for a store.
    """
    if not is_cluster_address(target):
        if headers or verify:
            raise JobRefusedError(
                f"--header and --verify are for the requests to a cluster, and {target!r} is taken for a "
                "store; write a cluster as http://HEAD:8265, or leave them out"
            )
        return _run_viewer([target, *viewer_arguments], None)
    client = ClusterClient(find_way(target, headers, verify))
    with tempfile.TemporaryDirectory(prefix="penumbra-dashboard-") as folder:
        jobs = _JobsFile(client, Path(folder) / "jobs.json")
        return _run_viewer(["--jobs-file", str(jobs.path), *viewer_arguments], jobs)


class _JobsFile:
    """The cluster's jobs in a file; the last known ones while the cluster does not answer."""

    def __init__(self, client: ClusterClient, path: Path) -> None:
        self.path = path
        self._client = client
        self._jobs = client.jobs()
        write_jobs(path, self._jobs)

    def update(self) -> None:
        problem = ""
        try:
            self._jobs = self._client.jobs()
        except ClusterError as error:
            problem = str(error)
        write_jobs(self.path, self._jobs, problem)


def write_jobs(path: Path, jobs: Sequence[ClusterJob], problem: str = "") -> None:
    """Replace the file that the viewer reads; `problem` says why nothing is known of what has not ended."""
    rows = [
        {
            "id": job.submission_id,
            "state": "UNKNOWN" if problem and not job.has_ended else job.state,
            "store": job.store,
            "started": job.started,
            "message": problem if problem and not job.has_ended else job.message,
        }
        for job in jobs
    ]
    write_whole(path, json.dumps(rows))


def _run_viewer(arguments: Sequence[str], jobs: _JobsFile | None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the viewer never outlives this
    viewer = subprocess.Popen(ending_with_this(["logitstore", "view", *arguments]))
    try:
        while True:
            try:
                return viewer.wait(timeout=REFRESH_SEC)
            except subprocess.TimeoutExpired:
                if jobs is not None:
                    jobs.update()
    except KeyboardInterrupt:
        return 0
    finally:
        if viewer.poll() is None:
            viewer.terminate()
            viewer.wait(timeout=10)
