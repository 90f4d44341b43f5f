"""`penumbra cluster check`: what the nodes of a cluster have for a job, and what they lack.

A job of the cluster asks them, in the environment that the labeling job would have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import Any

from cluster.errors import ClusterError, JobRefusedError
from cluster.jobs.client import POLL_SEC, ClusterClient
from cluster.jobs.reaching import prepared
from cluster.jobs.submission import Submission, as_check
from labeler.on_ray.lacking import remedy_of

MARGIN_SEC = 120
"""For the job itself, beyond the time that the nodes may take to answer."""
REMOVAL_SEC = 30.0
"""How long it is tried to remove the job that asked."""
SETTLED_SEC = 3.0
"""How long that job must be gone to count as removed; three of Ray's looks at its jobs."""
MOST_LOG = 2000
"""Characters of a log that are shown."""


def check(args: argparse.Namespace) -> int:
    """What the cluster's nodes have for a job, and what they lack, in the environment that it would have."""
    with prepared(args) as (client, job, submission):
        message, log = run_to_end(client, as_check(submission), job.workers.start_sec + MARGIN_SEC)
    seen = answer_of(log)
    if seen is None:
        end = log.strip()[-MOST_LOG:]
        remedy = remedy_of(f"{message}\n{end}")
        raise ClusterError(f"the nodes could not be looked at: {message.strip()}\n{end}\n{remedy}".rstrip())
    print(json.dumps(seen) if args.json else "\n".join(seen["lines"]))
    if seen["problem"]:
        raise JobRefusedError(seen["problem"])
    return 0


def run_to_end(client: ClusterClient, submission: Submission, timeout_sec: float) -> tuple[str, str]:
    """Message and log of a job that labels nothing; nothing of it is left on the cluster afterwards.

    Raises TimeoutError.
    """
    submission_id = client.submit(submission)
    deadline = time.monotonic() + timeout_sec
    try:
        while True:
            found = client.find(submission_id)
            if found is not None and found.status.is_terminal():
                return found.message or "", client.log_of(submission_id)
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {submission_id} has not ended within {timeout_sec:.0f} s")
            time.sleep(POLL_SEC)
    finally:
        remove(client, submission_id)


def remove(client: ClusterClient, submission_id: str) -> None:
    """Stop a job and make the cluster forget it; where that cannot be done, standard error says so.

    Ray looks at each job once a second. A job that it finds neither alive nor ended it enters as failed, also
    one that was deleted a moment ago, so that it is back: only a job that stays away is gone.
    """
    deadline = time.monotonic() + REMOVAL_SEC
    gone_at = None
    lack = "it does not end"
    while gone_at is None or time.monotonic() - gone_at < SETTLED_SEC:
        try:
            found = client.find(submission_id)
            if found is None:
                gone_at = gone_at or time.monotonic()
            else:
                gone_at = None
                (client.delete if found.status.is_terminal() else client.stop)(submission_id)
        except ClusterError as error:
            gone_at, lack = None, str(error)
        if gone_at is None and time.monotonic() > deadline:
            print(
                f"warning: job {submission_id}, which labels nothing, is still on the cluster ({lack}); "
                f"remove it: ray job stop {submission_id} && ray job delete {submission_id}, both with "
                f"--address {client.address}",
                file=sys.stderr,
            )
            return
        time.sleep(POLL_SEC)


def answer_of(log: str) -> dict[str, Any] | None:
    """The answer of `penumbra label nodes --json` among what else its job's log has."""
    for line in reversed(log.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "lacks" in found:
                return found
    return None
