"""From a command's arguments to the cluster that is meant, and to how a job runs there."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cluster.errors import ClusterError, JobRefusedError
from cluster.jobs import local
from cluster.jobs.address import find_way
from cluster.jobs.client import ClusterClient
from cluster.jobs.submission import SubmitOptions, parse_env, read_runtime_env


def client_of(args: argparse.Namespace) -> ClusterClient:
    return ClusterClient(find_way(_address(args), args.header, args.verify))


def _address(args: argparse.Namespace) -> str:
    """The cluster meant: as given, from Ray's variable, or the local one that is up."""
    found = args.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if found:
        return found
    try:
        return local.read_state(local.default_state_folder()).address
    except ClusterError:
        raise JobRefusedError(
            "no cluster is named: give --address http://HEAD:8265, set RAY_API_SERVER_ADDRESS, or start a "
            "local one with: penumbra cluster up --local 2"
        ) from None


def submit_options(client: ClusterClient, args: argparse.Namespace) -> SubmitOptions:
    """As given; on a cluster of this machine, paths and interpreter are this one's."""
    near = client.head_is_here()
    return SubmitOptions(
        files=args.files or ("same" if near else "ship"),
        python=args.python or (sys.executable if near else "python"),
        ship_code=args.ship_code,
        env_vars=parse_env(args.env),
        runtime_env=read_runtime_env(args.runtime_env),
    )


def say_found(args: argparse.Namespace, lines: Sequence[str]) -> None:
    """What the job was not told and its input tells."""
    if lines and not args.quiet and not args.json:
        print(*lines, sep="\n", file=sys.stderr)
