"""`penumbra cluster check`: what the nodes of a cluster have for a job, and what they lack.

A job of the cluster asks them, in the environment that the labeling job would have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, JobRefusedError
from cluster.jobs.people import owner_here
from cluster.jobs.reaching import client_of, say_found, submit_options
from cluster.jobs.submission import as_check, prepare
from labeler.config.found import load_input_found
from labeler.on_ray.lacking import remedy_of

MARGIN_SEC = 120
"""For the job itself, beyond the time that the nodes may take to answer."""
MOST_LOG = 2000
"""Characters of a log that are shown."""


def check(args: argparse.Namespace) -> int:
    """What the cluster's nodes have for a job, and what they lack, in the environment that it would have."""
    job, found = load_input_found(args.job, args.set, environ={})
    say_found(args, found)
    client = client_of(args)
    with tempfile.TemporaryDirectory(prefix="penumbra-submit-") as folder:
        submission = prepare(job, submit_options(client, args), Path(folder), owner=owner_here(args.owner))
        message, log = client.run_to_end(as_check(submission), job.workers.start_sec + MARGIN_SEC)
    seen = answer_of(log)
    if seen is None:
        end = log.strip()[-MOST_LOG:]
        remedy = remedy_of(f"{message}\n{end}")
        raise ClusterError(f"the nodes could not be looked at: {message.strip()}\n{end}\n{remedy}".rstrip())
    print(json.dumps(seen) if args.json else "\n".join(seen["lines"]))
    if seen["problem"]:
        raise JobRefusedError(seen["problem"])
    return 0


def answer_of(log: str) -> dict[str, Any] | None:
    """The answer of `penumbra label nodes --json` among what else its job's log has."""
    for line in reversed(log.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "lacks" in found:
                return found
    return None
