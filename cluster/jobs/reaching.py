"""From a command's arguments to the cluster that is meant, and to how a job runs there."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.describe.settings.interpreter import check_interpreter
from cluster.errors import JobRefusedError
from cluster.jobs.client import ClusterClient
from cluster.jobs.environment import parse_env, read_runtime_env
from cluster.jobs.local_state import NoLocalClusterError, default_state_folder, read_state
from cluster.jobs.network.address import find_way
from cluster.jobs.people import owner_here
from cluster.jobs.submission import Submission, SubmitOptions, prepare
from labeler.config.found import load_input_found
from labeler.config.loading import JobConfig


def client_of(args: argparse.Namespace) -> ClusterClient:
    return ClusterClient(find_way(_address(args), args.header, args.verify))


def _address(args: argparse.Namespace) -> str:
    """The cluster meant: as given, from Ray's variable, or the local one that is up."""
    found = args.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if found:
        return found
    try:
        return read_state(default_state_folder()).address
    except NoLocalClusterError:
        raise JobRefusedError(
            "no cluster is named: give --address http://HEAD:8265, set RAY_API_SERVER_ADDRESS, or start a "
            "local one with: penumbra cluster up --local 2"
        ) from None


def submit_options(client: ClusterClient, args: argparse.Namespace) -> SubmitOptions:
    """As given; on a cluster of this machine, paths and interpreter are this one's."""
    near = client.head_is_here()
    return SubmitOptions(
        files=args.files or ("same" if near else "ship"),
        python=_interpreter(args.python) or (sys.executable if near else "python"),
        ship_code=args.ship_code,
        env_vars=parse_env(args.env),
        runtime_env=read_runtime_env(args.runtime_env),
    )


def _interpreter(given: str | None) -> str | None:
    try:
        return None if given is None else check_interpreter(given)
    except ValueError as error:
        raise JobRefusedError(f"--python {given!r}: {error}") from None


@contextlib.contextmanager
def prepared(args: argparse.Namespace) -> Iterator[tuple[ClusterClient, JobConfig, Submission]]:
    """The cluster that is meant, the job, and how it is sent there; what it sends lies in a folder until
    the end."""
    job, found = load_input_found(args.job, args.set, environ={})
    say_found(args, found)
    client = client_of(args)
    with tempfile.TemporaryDirectory(prefix="penumbra-submit-") as folder:
        yield (
            client,
            job,
            prepare(job, submit_options(client, args), Path(folder), owner=owner_here(args.owner)),
        )


def say_found(args: argparse.Namespace, lines: Sequence[str]) -> None:
    """What the job was not told and its input tells."""
    if lines and not args.quiet and not args.json:
        print(*lines, sep="\n", file=sys.stderr)
