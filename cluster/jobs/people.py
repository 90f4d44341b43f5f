"""Whose job is whose, on a cluster that several people use.

A job carries its owner in its metadata. Ray has no notion of a person and nothing here is a protection: it
keeps people from stopping each other's jobs by mistake.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cluster.errors import JobRefusedError
from cluster.jobs.client import ClusterJob
from labeler.job.person import OWNER_VARIABLE, person_here

MOST_NAMED = 10


def owner_here(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Who submits: `--owner`, else PENUMBRA_OWNER, else user@host.

    Raises:
        JobRefusedError: the name is empty or holds white space or control characters.
    """
    name = given or person_here(environ)
    if not name.isprintable() or any(letter.isspace() for letter in name):
        raise JobRefusedError(
            f"owner {name!r} must be one word of printable characters; give --owner or set {OWNER_VARIABLE}"
        )
    return name


def newest_of(jobs: Sequence[ClusterJob], owner: str, *, address: str) -> ClusterJob:
    """The job that a command without an id means: the newest of one's own. `jobs` are newest first.

    Raises:
        JobRefusedError: none is one's own; those of others are named.
    """
    own = [job for job in jobs if job.owner == owner]
    if own:
        return own[0]
    others = ", ".join(f"{job.submission_id} ({job.owner or 'unknown'})" for job in jobs[:MOST_NAMED])
    remedy = f"name one of others by its id: {others}" if others else "submit one"
    raise JobRefusedError(
        f"{address} has no labeling job of {owner}; {remedy}; --owner or {OWNER_VARIABLE} say who you are"
    )


def only_one_at_work(jobs: Sequence[ClusterJob], owner: str) -> ClusterJob | None:
    """The job meant by a `stop` without an id: the one of one's own that has not ended, if there is one.

    Raises:
        JobRefusedError: several have not ended.
    """
    at_work = [job for job in jobs if job.owner == owner and not job.has_ended]
    if len(at_work) > 1:
        names = ", ".join(job.submission_id for job in at_work)
        raise JobRefusedError(f"{len(at_work)} of your jobs have not ended; name the one to stop: {names}")
    return at_work[0] if at_work else None
